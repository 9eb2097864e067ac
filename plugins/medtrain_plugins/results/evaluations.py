"""Evaluated runs as comparisons need them: one evaluation of a group, of one split or of all folds together."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain import Trainer
from medtrain.errors import CheckpointError, DataError, MedtrainError, PluginError, UsageError
from medtrain.protocols import Metric, Rows
from medtrain.rundir import METRICS, PREDICTIONS, Maps, SplitFolder, read_json, read_manifest, read_predictions

from medtrain_plugins.results.folds import average, pool

log = logging.getLogger("medtrain")

# metrics.json, the rows, and the participant of each row
Evaluated = tuple[dict[str, Any], Rows, list[str] | None]


@dataclass
class EvaluatedRun:
    """A run that was evaluated on a group. participants: of each row, where the evaluation has them."""

    name: str
    maps: Path
    facts: dict[str, Any]
    metrics: list[Metric]
    rows: Rows
    participants: list[str] | None


def evaluated_run(path: Path, name: str, group: str, split: int | None = None) -> EvaluatedRun:
    """A run with its evaluation of a group, evaluated and reported first where it has none that is up to date.

    split: one of its splits; None: all of them, their predictions pooled (validation: everybody once) or, where all
    scored the same samples (test), averaged.
    """
    maps = Maps.open(path)
    known = {folder.number: folder for folder in maps.splits()}
    if split is not None and split not in known:
        raise UsageError(f"{path}: there is no split {split}; there are: {', '.join(map(str, known)) or 'none'}")
    if not known:
        raise UsageError(f"{path}: this run has no split yet")
    trainer = Trainer.from_maps(path)
    chosen = [folder for number, folder in known.items() if split in (None, number)]
    found = [_evaluated(trainer, folder, group) for folder in chosen]
    metrics, rows, participants = found[0] if len(found) == 1 else _together(path, found)
    numbers = [folder.number for folder in chosen]
    facts = {
        "split": numbers[0] if len(numbers) == 1 else numbers,
        "plugins": trainer.plugins.names,
        "status": chosen[0].status()["status"],
        **{key: metrics.get(key) for key in ("checkpoint", "epoch", "step", "samples")},
    }
    return EvaluatedRun(name, path, facts, _metrics(trainer, numbers[0], path), rows, participants)


def _evaluated(trainer: Trainer, folder: SplitFolder, group: str) -> Evaluated:
    if (found := _read_evaluation(folder, group)) is None:
        log.info("Evaluating %s on group %s", folder.path, group)
        trainer.evaluate(group, split_idx=folder.number)
        trainer.report()
        found = _read_evaluation(folder, group)
    if found is None:
        raise UsageError(f"{folder.evaluation(group)}: the evaluation just written cannot be read again")
    return found


def _together(path: Path, found: Sequence[Evaluated]) -> Evaluated:
    """The evaluations of several splits as one."""
    tables = [rows for _, rows, _ in found]
    try:
        rows = pool(tables)
    except DataError:
        try:
            rows = average(tables)
        except DataError as error:
            raise DataError(
                f"{path}: its splits' predictions are neither of different samples nor of the same ({error})"
            ) from error
    participant_of = {
        str(sample): participant
        for _, rows_, participants in found
        for sample, participant in zip(rows_["sample_id"], participants or [], strict=participants is not None)
    }
    ids = list(map(str, rows["sample_id"]))
    complete = all(sample in participant_of for sample in ids)
    facts = {"checkpoint": f"{len(found)} splits", "epoch": None, "step": None, "samples": len(ids)}
    return facts, rows, [participant_of[sample] for sample in ids] if complete else None


def _read_evaluation(folder: SplitFolder, group: str) -> Evaluated | None:
    """What is on disk, unless the checkpoint it was made from has been trained further since."""
    where = folder.evaluation(group)
    table = where / f"{PREDICTIONS}.parquet"
    if not table.is_file() or not (where / METRICS).is_file():
        return None
    metrics = read_json(where / METRICS)
    if (step := _step(folder, metrics)) is not None and step != metrics.get("step"):
        return None
    if (found := read_predictions(table)) is None:
        return None
    return metrics, *found


def _metrics(trainer: Trainer, split: int, path: Path) -> list[Metric]:
    try:
        return trainer.build_metrics(split)
    except MedtrainError:
        raise
    except Exception as error:  # whatever a plugin does with data that are not there
        raise PluginError(
            f"{path}: plugin {', '.join(trainer.plugins.names)} cannot build its metrics from the record of the run "
            f"({type(error).__name__}: {error}); what build_metrics needs of the data it has to keep in Data.about"
        ) from error


def _step(folder: SplitFolder, metrics: dict[str, Any]) -> int | None:
    """The step of the checkpoint that was evaluated, as it is now; None when it is gone."""
    try:
        step: int = read_manifest(folder.checkpoint(str(metrics.get("checkpoint"))))["step"]
    except CheckpointError:
        return None
    return step
