"""Imports a MAPS of ClinicaDL 2.0 (the directory of its trainings) as a run directory.

It has configuration, data, history, and the weights if the network is one of MONAI's. Everything is accounted for: a
damaged file is a problem, and a setting without a counterpart is named.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from medtrain import ImportedCheckpoint, ImportedSplit, Split, write_run
from medtrain.config import RunConfig, configure
from medtrain.errors import ConfigError, MedtrainError, UsageError
from medtrain.protocols import load_state
from medtrain.weights import read_state
from torch import Tensor

from medtrain_plugins.brain.clinicadl.files import ImportReport
from medtrain_plugins.brain.clinicadl.networks import NoCounterpartError, convert, counterpart
from medtrain_plugins.brain.clinicadl.settings import MapsSettings
from medtrain_plugins.brain.data.bids import Visit, order
from medtrain_plugins.brain.data.dataset import BidsDataset, cell_text
from medtrain_plugins.brain.model.networks import build_network

SOURCE = "ClinicaDL 2.0"
LOSSES = {"MSELoss": "mse", "L1Loss": "l1", "HuberLoss": "huber", "SmoothL1Loss": "huber"}


def import_maps(maps: Path, out: Path, split: int | None = None, images: Path | None = None) -> ImportReport:
    """Writes the run directory `out` from the MAPS in `maps`; returns the report.

    split: only this one. images: the BIDS or CAPS tree, if it has moved since. Raises UsageError if `maps` is not a
    MAPS or does not have the split.
    """
    if not (maps / "model.json").exists() and not (maps / "training").is_dir():
        raise UsageError(f"{maps}: not a MAPS of ClinicaDL 2.0 (neither model.json nor the folder training)")
    numbers = sorted(
        int(path.name[6:]) for path in (maps / "training").glob("split-*") if re.fullmatch(r"split-\d+", path.name)
    )
    if not numbers:
        raise UsageError(f"{maps}: nothing was trained here, there is no folder training/split-0")
    if split is not None and split not in numbers:
        raise UsageError(f"{maps}: there is no split {split}; there are: {', '.join(map(str, numbers))}")
    reader = _Reader(maps, images)
    splits = [reader.split(number) for number in numbers if split in (None, number)]
    for one in splits:
        one.about |= {"unplaced": reader.found.unplaced, "damaged": reader.found.problems}
    write_run(out, splits, SOURCE)
    reader.found.splits = [one.number for one in splits]
    return reader.found


class _Reader(MapsSettings):
    """The parts of a run directory from the files of a MAPS, split by split."""

    # --- one split

    def split(self, number: int) -> ImportedSplit:
        values, options = self.settings(number)
        groups, tests = self.groups(number)
        data = self.data(groups, options)
        self.network(options)
        values["plugins"] = {"brain": options}
        config = self.config(values)
        wanted = int(values["optimization"].get("num_epochs", 1))
        history, steps = self.history(number, groups.get("train"), values)
        checkpoints = [
            self.checkpoint(path, steps, len(history), config)
            for path in sorted((self.maps / f"training/split-{number}/models").glob("**/model.pt"))
        ]
        kept = [one for one in checkpoints if one is not None]
        if not kept:
            self.found.tell(self.found.problems, f"training/split-{number}/models: no weights that can be read")
        complete = any(one.name == "last" for one in kept)
        members = {
            name: [(str(visit), visit.participant_id) for visit in _visits(rows)] for name, rows in groups.items()
        }
        about = {"imported": SOURCE, "network": self.model.get("network", {}), "test_results": tests}
        about |= {"network_is_here": self.counterpart is not None}
        return ImportedSplit(
            number,
            config,
            data,
            members,
            kept,
            history,
            "completed" if complete else "interrupted",
            wanted,
            self.best(number, steps),
            about,
        )

    def config(self, values: dict[str, Any]) -> RunConfig:
        """The configuration; a section that cannot be used is reported and keeps its defaults."""
        while True:
            try:
                return configure(["brain"], {SOURCE: values})
            except ConfigError as error:
                bad = [name for name in ("scheduler", "early_stopping", "optimization") if f" {name}." in str(error)]
                if not bad:
                    raise
                self.found.tell(self.found.unplaced, f"{bad[0]}: {error}")
                values = {**values, bad[0]: {}}

    def groups(self, number: int) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The rows of each group with their columns, and the results on test groups, by checkpoint."""
        groups = {}
        for name in ("train", "validation"):
            rows = self.rows(f"training/data/{name}/split-{number}")
            if rows is not None:
                groups[name] = rows
        tests: dict[str, Any] = {}
        for folder in sorted((self.maps / "test").glob("group-*")):
            name = folder.name.removeprefix("group-")
            rows = self.rows(f"test/{folder.name}")
            if rows is not None and name not in groups:
                groups[name] = rows
            for table in sorted(folder.glob(f"results/split-{number}/*/metrics/aggregated.tsv")):
                values = self.table(str(table.relative_to(self.maps)))
                if values is not None and len(values):
                    tests.setdefault(name, {})[table.parents[1].name] = _numbers(values.iloc[0])
        return groups, tests

    def rows(self, folder: str) -> pd.DataFrame | None:
        """Participants and sessions of data.tsv, with their columns in dataset.json."""
        rows = self.table(f"{folder}/data.tsv", ("participant_id", "session_id"))
        described = self.json(f"{folder}/dataset.json").get("data")
        if rows is None or not isinstance(described, dict):
            return rows
        try:
            known = pd.DataFrame({name: pd.Series(values) for name, values in described.items()})
            known = known.drop(columns=["n_samples"], errors="ignore")
            return rows[["participant_id", "session_id"]].merge(known, on=["participant_id", "session_id"], how="left")
        except (ValueError, KeyError, TypeError) as error:
            self.found.tell(self.found.problems, f"{folder}/dataset.json: its table cannot be read: {error}")
            return rows

    def data(self, groups: dict[str, pd.DataFrame], options: dict[str, Any]) -> Split | None:
        """The groups as datasets, if the tree exists; sets the classes and the shape of images."""
        label, task = options["label"], options["task"]
        labelled = task in ("classification", "regression")
        missing = [name for name, rows in groups.items() if labelled and label not in rows]
        if task == "classification" and not missing:
            options["classes"] = self.classes([value for rows in groups.values() for value in rows[label]])
        where = self.tree if str(self.tree) not in ("", ".") else None
        if "train" not in groups or missing or where is None or not where.is_dir():
            told = f"no column {label!r}" if missing else f"the images are not at {where or 'any recorded place'}"
            self.found.tell(
                self.found.notes, f"{told}: the run cannot evaluate its own groups; import it again with --images."
            )
            return None
        if task == "segmentation":
            return None
        try:
            datasets: dict[str, Any] = {}
            for name, rows in groups.items():
                columns = {key: rows[key].tolist() for key in ("participant_id", "session_id", label) if key in rows}
                datasets[name] = BidsDataset(
                    str(where.resolve()),
                    options.get("file_type", "T1w"),
                    data=columns,
                    label=label if labelled else None,
                    task=task,
                    class_names=options.get("classes") or None,
                    transforms=options.get("transforms", []),
                    canonical=options.get("canonical", False),
                )
            options["input_shape"] = list(datasets["train"][0]["image"].shape)
            return Split(datasets).checked()
        except MedtrainError as error:
            self.found.tell(self.found.problems, f"{where}: {error}")
            return None

    def classes(self, values: list[Any]) -> list[str]:
        """The names of classes by number; a class without a label has its number as its name."""
        names = {cell_text(value) for value in values}
        count = 2 if self.two_classes else int((self.model.get("network") or {}).get("num_outputs", 2))
        numbers = [str(number) for number in range(count)]
        if not names <= set(numbers):
            self.found.tell(
                self.found.problems, f"labels {', '.join(sorted(names))} are not numbers of {count} classes"
            )
        return numbers

    # --- the history

    def history(
        self, number: int, train: pd.DataFrame | None, values: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], int]:
        """One record per epoch, and the number of optimizer steps of an epoch."""
        folder = f"training/split-{number}"
        losses = self.table(f"{folder}/logs/training_loss.tsv")
        scores = self.table(f"{folder}/validation_metrics/aggregated.tsv", ("epoch",))
        samples, size = 0 if train is None else len(train), int(values["data"].get("batch_size", 1))
        whole, rest = divmod(samples, size)
        weights = [size] * whole + ([rest] if rest and not values["data"].get("drop_last") else [])
        steps = len(weights) // int(values["optimization"].get("accumulation_steps", 1))
        epochs = 0 if losses is None or not weights else len(losses) // len(weights)
        if losses is not None and weights and len(losses) % len(weights):
            left = len(losses) % len(weights)
            self.found.tell(
                self.found.notes, f"split {number}: {left} batches of an epoch that was not finished are left out."
            )
        if losses is None and scores is not None:
            epochs = int(scores["epoch"].max() or 0)
        records: list[dict[str, Any]] = []
        for epoch in range(epochs):
            record: dict[str, Any] = {"epoch": epoch, "step": (epoch + 1) * steps}
            if losses is not None:
                part = losses.iloc[epoch * len(weights) : (epoch + 1) * len(weights)]
                for name in losses:
                    mean = float((part[name].to_numpy() * weights).sum() / sum(weights))
                    record["train/loss" if name == "loss" else f"train/loss_{name}"] = mean
            records.append(record)
        self.rates(folder, records)
        if scores is not None:
            for _, row in scores.iterrows():
                if 0 < row["epoch"] <= epochs:
                    found = _numbers(row.drop("epoch"))
                    records[int(row["epoch"]) - 1] |= {f"validation/{name}": value for name, value in found.items()}
        return records, steps

    def rates(self, folder: str, records: list[dict[str, Any]]) -> None:
        """The last learning rate of each epoch, if it was logged."""
        for path in sorted((self.maps / folder / "logs/learning_rates").glob("*.tsv")):
            table = self.table(str(path.relative_to(self.maps)), ("epoch",))
            if table is None:
                continue
            columns = [column for column in table if column not in ("epoch", "batch")]
            for key, rows in table.groupby("epoch"):
                if 0 < (epoch := int(float(str(key)))) <= len(records):
                    last = max(float(rows[column].iloc[-1]) for column in columns)
                    name = "learning_rate" if path.stem == "optimizer" else f"learning_rate_{path.stem}"
                    records[epoch - 1][name] = last

    def best(self, number: int, steps: int) -> dict[str, Any]:
        """The first best model's name, value and epoch."""
        for folder in sorted((self.maps / f"training/split-{number}/models/best_models").glob("best-*")):
            name = folder.name.removeprefix("best-")
            where = folder / "validation_metrics/aggregated.tsv"
            table = self.table(str(where.relative_to(self.maps)), ("epoch", name))
            if table is not None and len(table):
                epoch = int(table["epoch"].iloc[-1])
                return {"name": name, "value": float(table[name].iloc[-1]), "epoch": epoch - 1, "step": epoch * steps}
        return {"name": "loss", "value": None, "epoch": None, "step": None}

    # --- the weights

    def network(self, options: dict[str, Any]) -> None:
        """The counterpart of the MAPS's network, or None."""
        described = self.model.get("network") or {}
        try:
            if not described:
                raise NoCounterpartError("model.json does not describe the network")
            if not self.supported:
                raise NoCounterpartError(f"no task here is trained by {self.loss_name} with these outputs")
            self.counterpart = counterpart(described, drops_sigmoid=self.loss_name == "BCELoss" and self.two_classes)
        except NoCounterpartError as error:
            self.counterpart = None
            name = described.get("name_", "the network")
            self.found.tell(
                self.found.notes,
                f"{error}. The weights of {name} are kept under their own names; eval and predict need a network here.",
            )
            return
        options |= {"network": self.counterpart.network, "network_options": self.counterpart.options}
        if not options.get("input_shape"):
            self.found.tell(
                self.found.notes, "The shape of the images is not known: predict needs plugins.brain.input_shape."
            )

    def checkpoint(self, path: Path, steps: int, epochs: int, config: RunConfig) -> ImportedCheckpoint | None:
        """The weights in a model.pt, with our names if the network has a counterpart; None if they cannot be read."""
        where = str(path.relative_to(self.maps))
        folder = path.parent.name
        if folder == "final":
            name, epoch = "last", epochs
        elif found := re.fullmatch(r"epoch-(\d+)", folder):
            epoch = int(found[1])
            name = f"epoch-{epoch:04d}"
        else:
            table = self.table(f"{path.parent.relative_to(self.maps)}/validation_metrics/aggregated.tsv", ("epoch",))
            name, epoch = folder, int(table["epoch"].iloc[-1]) if table is not None and len(table) else epochs
        try:
            state = read_state(path)
            weights = self.placed(state, where, config)
        except MedtrainError as error:
            self.found.tell(self.found.problems, f"{where}: {str(error).removeprefix(f'{path}: ')}")
            return None
        return ImportedCheckpoint(name, weights, epoch, epoch * steps)

    def placed(self, state: dict[str, Tensor], where: str, config: RunConfig) -> dict[str, Tensor]:
        own = {key.removeprefix("network."): value for key, value in state.items() if key.startswith("network.")}
        for key in state:
            if not key.startswith("network."):
                self.found.tell(self.found.unplaced, f"model.pt: {key}")
        if self.counterpart is None:
            return own
        weights = convert(own, self.counterpart, self.two_classes)
        options = config.options("brain")
        described = self.model["network"]
        shape = options.input_shape or [described.get("in_channels", 3)] + [64] * described.get("spatial_dims", 2)
        outputs = len(options.classes) or (1 if options.task == "regression" else described["num_outputs"])
        network = build_network(options.network, options.task, shape, outputs, options.network_options)
        load_state(network, weights, where)
        return weights


def _visits(rows: pd.DataFrame) -> list[Visit]:
    """In the order of our datasets."""
    pairs = zip(rows["participant_id"].astype(str), rows["session_id"].astype(str), strict=True)
    return sorted((Visit(*pair) for pair in pairs), key=order)


def _numbers(row: pd.Series) -> dict[str, float]:
    return {str(name): float(value) if not math.isnan(float(value)) else math.nan for name, value in row.items()}
