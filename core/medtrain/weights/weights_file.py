"""The weights file that a configuration key names."""

from __future__ import annotations

from pathlib import Path

from medtrain.errors import ConfigError
from medtrain.rundir import checkpoint
from medtrain.rundir.resolve import checkpoint_of


def weights_file(where: str, key: str) -> Path:
    """The weights a configuration key names: a file, or a run directory's best (else last) model."""
    path = Path(where)
    if path.is_dir():
        return checkpoint_of(path) / checkpoint.MODEL
    if not path.is_file():
        raise ConfigError(f"{key}: there is no file {where!r}")
    return path
