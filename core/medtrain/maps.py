"""Deprecated: the run directory is in `medtrain.rundir`."""

from __future__ import annotations

import warnings

from medtrain.rundir import Maps, SplitFolder, read_json, strict, write_json

__all__ = ["Maps", "SplitFolder", "read_json", "strict", "write_json"]

warnings.warn("medtrain.maps is deprecated; import from medtrain.rundir", DeprecationWarning, stacklevel=2)
