"""Runs that another program trained, written as run directories: everything that reads a run reads them.

They can be shown, verified, evaluated and trained on from their weights (`transfer.checkpoint`), not resumed: the state
of optimizer and schedule belongs to the program they come from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from medtrain import RunConfig, Split
from medtrain.catalog import installed
from medtrain.rundir import Maps, SplitFolder, check_creatable, new_folder, sha256_of
from medtrain.rundir.checkpoint import Checkpoint, write
from medtrain.rundir.environment import environment
from medtrain.user_objects.record import describe_data


@dataclass
class ImportedCheckpoint:
    """Weights under a checkpoint's name. epoch: epochs that were finished. step: optimizer steps that were done."""

    name: str
    weights: dict[str, torch.Tensor]
    epoch: int
    step: int


@dataclass
class ImportedSplit:
    """One split of a run.

    config: what it was trained with, as far as that is known. data: its groups, or None where the samples are
    missing; then members lists who was in them, group -> (sample, participant). history: one record per epoch, from
    epoch 0, as `SplitFolder.history` gives them. status: completed or interrupted. best: name, value, epoch, step of
    the best model. about: facts worth keeping, JSON only.
    """

    number: int
    config: RunConfig
    data: Split | None
    members: dict[str, list[tuple[str, str]]]
    checkpoints: list[ImportedCheckpoint]
    history: list[dict[str, Any]]
    status: str
    num_epochs: int
    best: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def write_run(path: Path, splits: Sequence[ImportedSplit], source: str) -> None:
    """Write a run directory, there at once and whole. source: the program, for messages.

    Raises UsageError for a folder that is not empty or cannot be written.
    """
    check_creatable(path)
    with new_folder(path) as aside:
        config = splits[0].config
        rows = installed(config.run.plugins)
        run = Maps.create(aside, config.to_toml(), rows, environment())
        for split in splits:
            _write_split(run.split(split.number), split, source)
        run.write_index()


def _write_split(folder: SplitFolder, split: ImportedSplit, source: str) -> None:
    with folder.locked():
        _fill(folder, split, source)


def _fill(folder: SplitFolder, split: ImportedSplit, source: str) -> None:
    if split.data is not None:
        membership = split.data.membership()
    else:
        membership = {
            name: {
                "samples": [sample for sample, _ in rows],
                "participants": sorted({participant for _, participant in rows}),
            }
            for name, rows in split.members.items()
        }
    digest = sha256_of(membership)
    folder.write_membership(membership, digest, split.about)
    folder.inputs.write(split.config.to_toml(), {"imported": source})
    unwritable = {"unwritable": f"they were not there when the run was imported from {source}"}
    folder.inputs.write_data(unwritable if split.data is None else describe_data(split.data))
    for one in split.history:
        folder.append_history(one)
    last = max((kept.step for kept in split.checkpoints), default=0)
    for kept in split.checkpoints:
        facts = {
            "step": kept.step,
            "epoch": kept.epoch,
            "steps_into_epoch": 0,
            "membership": digest,
            "finished": source if kept.step == last else "",
            "imported": source,
        }
        texts = {"config.toml": split.config.to_toml(), "split.json": json.dumps(folder.membership())}
        write(folder.checkpoint(kept.name), Checkpoint(kept.weights, {}, facts, texts))
    folder.write_status(
        split.status,
        epoch=len(split.history),
        num_epochs=split.num_epochs,
        step=last,
        best=split.best,
        reason=f"trained by {source}",
    )
    folder.log(f"imported from {source}")
