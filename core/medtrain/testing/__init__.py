"""The conformance kit for plugins, and a toy task to try them on."""

from __future__ import annotations

from medtrain.testing.conformance import Finding, assert_conforms, check_plugin
from medtrain.testing.toy import ToyTask, ToyVolumes

__all__ = ["Finding", "ToyTask", "ToyVolumes", "assert_conforms", "check_plugin"]
