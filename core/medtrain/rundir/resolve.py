"""Which run, split and checkpoint a path or a name stands for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from medtrain.errors import CheckpointError
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import LAST, Maps, SplitFolder


@dataclass(frozen=True)
class Location:
    """What a path points to: a run directory, perhaps one of its splits, perhaps a checkpoint's name there."""

    maps: Maps
    split: int | None = None
    checkpoint: str | None = None


def locate(path: Path) -> Location:
    """What a path in a run directory points to; UsageError outside of one."""
    maps = Maps.containing(path)
    inside = path.resolve().relative_to(maps.path.resolve()).parts
    if not inside or not re.fullmatch(r"split-\d+", inside[0]):
        return Location(maps)
    return Location(maps, int(inside[0].removeprefix("split-")), inside[1] if len(inside) > 1 else None)


def find_checkpoint(folder: SplitFolder, name: str | Path | None = None) -> Path:
    """The checkpoint of this name or path; without one the split's best, else its last. Raises CheckpointError."""
    if name is None:
        name = folder.best() or LAST
    for path in (folder.checkpoint(str(name)), Path(name)):
        if checkpoint.is_there(path):
            return path
    known = ", ".join(path.name for path in folder.checkpoints())
    raise CheckpointError(f"{folder.path}: there is no checkpoint {str(name)!r}; there are: {known or 'none'}")


def has_checkpoint(folder: SplitFolder) -> bool:
    """Whether there is one to resume from, be it a predecessor or one whose last rename a crash prevented."""
    return any(folder.path.glob(f"*/{checkpoint.MANIFEST}"))


def checkpoint_of(path: Path, name: str | None = None) -> Path:
    """The checkpoint a path stands for: itself or, of a run directory or a split's folder, the one called `name`."""
    if name is None and (path / checkpoint.MANIFEST).is_file():
        return path
    found = locate(path)
    return find_checkpoint(found.maps.split(found.split or 0), name)
