"""Tables and the console they are printed on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medtrain.console import table
from rich.table import Table


def metrics_table(run: Path, split: int, epoch: int | None) -> Table:
    """The record of an epoch (default: the last) as train and validation columns."""
    from medtrain.rundir import Maps

    history = Maps.open(run).split(split).history()
    record: Mapping[str, Any] = next((r for r in history if r["epoch"] == epoch), history[-1] if history else {})
    names = [key.partition("/")[2] for key in record if "/" in key]
    rows = [[name, record.get(f"train/{name}"), record.get(f"validation/{name}")] for name in dict.fromkeys(names)]
    title = f"Epoch {record['epoch'] + 1}" if record else ""
    return table(title, ["value", "train", "validation"], rows)
