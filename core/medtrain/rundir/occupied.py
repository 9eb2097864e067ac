"""What a run directory that is there already means for a training: go on, start over, or refuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli

from medtrain.config.layers import read_toml
from medtrain.errors import UsageError, first_lines
from medtrain.rundir.directory import INDEX, LAST, Maps, check_creatable
from medtrain.rundir.resolve import find_checkpoint, has_checkpoint


def where_to_start(path: Path, number: int, asked: str, split_config: str, overwrite: bool) -> Path | None:
    """The checkpoint from which an interrupted training goes on; None when it starts.

    asked, split_config: the configuration of the run and of this training of split `number`, as TOML. overwrite: erase
    what the split holds. Raises UsageError for a run with another configuration, and for a split that is complete.
    """
    if not (path / INDEX).is_file():
        check_creatable(path)
        return None
    opened = Maps.open(path)
    refuse_other_settings(opened.config_file, asked)
    folder = opened.split(number)
    if overwrite or not has_checkpoint(folder):
        folder.erase()
        return None
    if folder.status()["status"] == "completed":
        raise UsageError(
            f"{folder.path}: the folder already holds a run that is complete; resume it with more epochs, evaluate "
            "it, or give another --out (Trainer: overwrite=True erases it)"
        )
    refuse_other_settings(folder.config_file, split_config, ("data", "run", "computational"))
    return find_checkpoint(folder, LAST)


def refuse_other_settings(path: Path, asked: str, sections: Sequence[str] | None = None) -> None:
    """UsageError when a recorded configuration is another than this one; sections: all, or only those."""
    if not path.is_file():
        return
    recorded, wanted = _flat(read_toml(path)[1]), _flat(tomli.loads(asked))
    changed = [key for key in sorted({*recorded, *wanted}) if recorded.get(key) != wanted.get(key)]
    if sections is not None:
        changed = [key for key in changed if key.partition(".")[0] in sections]
    if changed:
        told = [f"{key} = {recorded.get(key)} there, {wanted.get(key)} here" for key in changed]
        raise UsageError(
            f"{path.parent}: the folder already holds a run with another configuration; give another --out\n"
            f"{first_lines(told)}"
        )


def _flat(values: dict[str, Any], at: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{at}{name}.") if isinstance(value, dict) else {f"{at}{name}": value}
    return flat
