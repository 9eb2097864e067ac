"""A MAPS of ClinicaDL 2.0, the directory its trainings leave, as a run directory: what it was trained with and on,
how it went, and its weights where the network is one of MONAI's.

Everything that is read is accounted for: a damaged file is a problem, a setting without a counterpart is named.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from medtrain import Split
from medtrain.config import Layers, RunConfig
from medtrain.data.tables import read_rows
from medtrain.errors import ConfigError, MedtrainError, UsageError
from medtrain.imported import ImportedCheckpoint, ImportedSplit, write_run
from medtrain.plugins import Plugins
from medtrain.weights import load_state, read_state
from torch import Tensor

from .bids import Visit, order
from .clinicadl_networks import Counterpart, NoCounterpartError, convert, counterpart
from .dataset import BidsDataset, _text
from .networks import build_network

log = logging.getLogger("medtrain")

SOURCE = "ClinicaDL 2.0"
LOSSES = {"MSELoss": "mse", "L1Loss": "l1", "HuberLoss": "huber", "SmoothL1Loss": "huber"}
_EMPTY: tuple[Any, ...] = (None, False, {}, [], "")


@dataclass
class Found:
    """What came of an import. problems: files that are damaged or missing. unplaced: settings without a place here."""

    problems: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)

    def tell(self, lines: list[str], line: str) -> None:
        """Add a line that is not there yet."""
        if line not in lines:
            lines.append(line)


class Fields:
    """The values of a JSON file, each taken once; `rest` tells of those nobody took."""

    def __init__(self, values: Mapping[str, Any], where: str, found: Found) -> None:
        self.values = {key: value for key, value in values.items() if key != "name_"}
        self.name, self.where, self.found = str(values.get("name_", "")), where, found

    def take(self, key: str, default: Any = None) -> Any:
        """A value, or the default where there is none or it is null."""
        value = self.values.pop(key, None)
        return default if value is None else value

    def part(self, key: str) -> Fields:
        """An object inside, under the same file's name."""
        value = self.values.pop(key, None)
        return Fields(value if isinstance(value, dict) else {}, f"{self.where}: {key}", self.found)

    def rest(self) -> None:
        """Tell of every value that was not taken and says something."""
        for key, value in self.values.items():
            if value not in _EMPTY:
                self.found.tell(self.found.unplaced, f"{self.where}: {key} = {json.dumps(value)[:120]}")


def import_maps(maps: Path, out: Path, split: int | None = None, images: Path | None = None) -> Found:
    """Write the run directory `out` from the MAPS in `maps`; returns what was found on the way.

    split: only this one. images: the BIDS or CAPS tree, where it is not where the MAPS recorded it. Raises UsageError
    when `maps` is no MAPS or has no such split.
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


class _Reader:
    def __init__(self, maps: Path, images: Path | None) -> None:
        self.maps, self.images, self.found = maps, images, Found()
        self.model = self.json("model.json")
        self.counterpart: Counterpart | None = None
        self.reason = ""

    # --- files

    def json(self, name: str, optional: bool = False) -> dict[str, Any]:
        path = self.maps / name
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            if not optional:
                self.found.tell(self.found.problems, f"{name}: missing")
            return {}
        except (OSError, ValueError) as error:
            self.found.tell(self.found.problems, f"{name}: not JSON: {error}")
            return {}
        if not isinstance(value, dict):
            self.found.tell(self.found.problems, f"{name}: not a JSON object")
            return {}
        return value

    def fields(self, name: str) -> Fields:
        return Fields(self.json(name), name, self.found)

    def table(self, name: str, columns: tuple[str, ...] = (), optional: bool = False) -> pd.DataFrame | None:
        """A table that has these columns, or None."""
        path = self.maps / name
        if not path.is_file():
            if not optional:
                self.found.tell(self.found.problems, f"{name}: missing")
            return None
        try:
            rows = read_rows(path)
        except MedtrainError as error:
            self.found.tell(self.found.problems, f"{name}: {str(error).removeprefix(f'{path}: ')}")
            return None
        if missing := [column for column in columns if column not in rows]:
            self.found.tell(self.found.problems, f"{name}: no column {missing[0]!r}")
            return None
        for column in rows.columns.difference(["participant_id", "session_id"]):
            if column in columns or name.endswith("aggregated.tsv") or "logs/" in name:
                rows[column] = pd.to_numeric(rows[column], errors="coerce")
        return rows

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
        """The configuration; a section that cannot be used here is told of and left at its defaults."""
        plugins = Plugins.of(["brain"])
        while True:
            layers = Layers()
            layers.add({"run": {"plugins": ["brain"]}}, "import")
            layers.add(values, SOURCE)
            try:
                return layers.build(plugins.options())
            except ConfigError as error:
                bad = [name for name in ("scheduler", "early_stopping", "optimization") if f" {name}." in str(error)]
                if not bad:
                    raise
                self.found.tell(self.found.unplaced, f"{bad[0]}: {error}")
                values = {**values, bad[0]: {}}

    def settings(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration's sections and the plugin's options, from the JSON files."""
        values: dict[str, Any] = {"checkpoint": {}}
        values |= self.computational(number)
        optimization = self.fields("training/optimization.json")
        section = {
            key: optimization.take(key)
            for key in ("num_epochs", "accumulation_steps", "evaluation_interval", "clip_grad_norm", "clip_grad_value")
        }
        section["clip_norm_type"] = optimization.take("grad_norm_type")
        optimization.take("reset_model")  # every split here starts from weights of its own
        optimization.rest()
        section |= self.optimizer()
        values["optimization"] = {key: value for key, value in section.items() if value is not None}
        self.callbacks(values)
        values["data"] = self.feeding(number)
        metrics = self.fields("metrics.json")
        names = list(metrics.take("metrics", {}))
        self.found.tell(
            self.found.notes,
            f"Metrics {', '.join(names) or '(none)'} are in the history; evaluations here compute those of the task.",
        )
        return values, self.options(number)

    def computational(self, number: int) -> dict[str, Any]:
        there = self.fields(f"training/split-{number}/computational.json")
        gpu, amp, last = there.take("gpu", False), there.take("amp", False), there.take("channels_last", False)
        there.take("non_blocking")
        section = {
            "device": "auto" if gpu else "cpu",
            "amp": "no" if not amp else "fp16" if gpu else "bf16",
            "memory_format": "channels_last" if last else "contiguous",
            "deterministic": there.take("deterministic", False),
        }
        run = {"seed": there.take("seed", 0)}
        there.rest()
        return {"computational": section, "run": run}

    def optimizer(self) -> dict[str, Any]:
        there = Fields(self.model, "model.json", self.found).part("optimizer")
        if not there.name:
            return {}
        section: dict[str, Any] = {"optimizer": there.name, "weight_decay": 0.0}
        for key, name in (("lr", "learning_rate"), ("weight_decay", "weight_decay")):
            if isinstance(there.values.get(key), (int, float)):
                section[name] = there.take(key)
        freeze = there.take("freeze")
        if freeze:
            self.found.tell(self.found.unplaced, f"model.json: optimizer: freeze = {json.dumps(freeze)}")
        plain = {key: value for key, value in there.values.items() if value is not None and not isinstance(value, dict)}
        section["options"] = {key: value for key, value in plain.items() if value is not False}
        there.values = {key: value for key, value in there.values.items() if key not in plain}
        there.rest()  # by submodule
        return section

    def callbacks(self, values: dict[str, Any]) -> None:
        for described in self.json("callbacks.json").get("callbacks", []):
            there = Fields(described, f"callbacks.json: {described.get('name_')}", self.found)
            if there.name == "ModelCheckpointCallback":
                values["checkpoint"]["epochs"] = sorted(
                    {*values["checkpoint"].get("epochs", []), *there.take("epochs", [])}
                )
                there.take("save_last")
                if there.values.get("metric") == "loss":
                    values["checkpoint"]["metrics"] = [there.take("metric")]
            elif there.name == "EarlyStoppingCallback" and len(there.values.get("stoppers") or []) == 1:
                stopper = Fields(there.take("stoppers")[0], f"{there.where}: stoppers", self.found)
                if stopper.values.get("metric") == "loss":
                    keys = ("patience", "min_delta", "check_finite", "upper_bound", "lower_bound")
                    chosen = {key: stopper.take(key) for key in keys} | {"monitor": stopper.take("metric")}
                    values["early_stopping"] = {key: value for key, value in chosen.items() if value is not None}
                stopper.rest()
            elif there.name == "LRSchedulerCallback":
                self.schedule(there, values)
            else:
                self.found.tell(self.found.unplaced, f"callbacks.json: {there.name}")
                continue
            there.rest()

    def schedule(self, there: Fields, values: dict[str, Any]) -> None:
        kind = there.take("scheduler_type", "")
        there.take("optimizer_name")
        scheduler = there.part("scheduler")
        if kind not in ("epoch-based", "step-based"):
            self.found.tell(self.found.unplaced, f"{scheduler.where}: {scheduler.name}, {kind}")
            return
        scheduler.values.pop("last_epoch", None)
        options = {key: value for key, value in scheduler.values.items() if value is not None}
        values["scheduler"] = {"name": scheduler.name, "options": options, "interval": kind.removesuffix("-based")}

    def feeding(self, number: int) -> dict[str, Any]:
        train = self.fields(f"training/data/train/split-{number}/dataloader.json")
        section = {
            key: train.take(key)
            for key in ("batch_size", "num_workers", "pin_memory", "drop_last", "prefetch_factor", "persistent_workers")
        }
        section["sampling"] = "shuffle" if train.take("shuffle", True) else "sequential"
        train.rest()
        validation = self.fields(f"training/data/validation/split-{number}/dataloader.json")
        section["evaluation_batch_size"] = validation.take("batch_size")
        section["evaluation_num_workers"] = validation.take("num_workers")
        return {key: value for key, value in section.items() if value is not None}

    # --- the data

    def options(self, number: int) -> dict[str, Any]:
        """The plugin's options, as far as they follow from the loss and the data set."""
        model = Fields(self.model, "model.json", self.found)
        loss, label = model.part("loss"), model.take("label_key", "label")
        network = self.model.get("network") or {}
        inferer = model.part("inferer")
        if inferer.name not in ("", "SimpleInferer"):
            self.found.tell(self.found.unplaced, f"model.json: inferer = {inferer.name}")
        postprocessing = inferer.part("postprocessing")
        postprocessing.rest()
        options: dict[str, Any] = {"standardize": False, "label": label, "network": network.get("name_", "unknown")}
        outputs = network.get("num_outputs")
        if model.name == "ReconstructionModel":
            options |= {"task": "reconstruction", "loss": LOSSES.get(loss.name, "")}
            if options["loss"] == "huber":
                options["loss"] = ""
        elif outputs is None:
            options["task"] = "segmentation"
        elif loss.name in LOSSES:
            options |= {"task": "regression", "loss": LOSSES[loss.name], "label_scale": [0.0, 1.0]}
        else:
            options["task"] = "classification"
        self.two_classes = loss.name in ("BCEWithLogitsLoss", "BCELoss") and outputs == 1
        self.supported = self.two_classes or loss.name in ("CrossEntropyLoss", *LOSSES)
        self.loss_name = loss.name
        loss.take("reduction")
        if options["task"] == "classification" and isinstance(loss.values.get("weight"), list) and not self.two_classes:
            options["class_weights"] = loss.take("weight")
        loss.rest()
        options |= self.dataset(number)
        return options

    def dataset(self, number: int) -> dict[str, Any]:
        """What dataset.json says of file type, tree and transforms."""
        there = self.fields(f"training/data/train/split-{number}/dataset.json")
        recorded = Path(there.part("bids").take("path", ""))
        self.tree = self.images or recorded
        for key in ("data", "columns"):
            there.take(key)
        if there.name not in ("", "BidsDataset"):
            self.found.tell(self.found.unplaced, f"{there.where}: a data set of the class {there.name}")
        options: dict[str, Any] = {}
        kind = there.part("file_type")
        if kind.values.get("suffix"):
            file_type = {"suffix": kind.take("suffix"), "datatype": kind.take("data_type", "")}
            kind.take("extension")
            for key in ("with_entities", "without_entities"):
                if isinstance(entities := kind.take(key), dict):
                    file_type[key] = {name: str(value) for name, value in entities.items()}
            options["file_type"] = file_type
        kind.take("description")
        kind.rest()
        options |= self.transforms(there.part("transforms"))
        there.rest()
        return options

    def transforms(self, there: Fields) -> dict[str, Any]:
        options: dict[str, Any] = {"transforms": []}
        extraction = there.part("extraction")
        if extraction.name not in ("", "Image"):
            self.found.tell(self.found.unplaced, f"{extraction.where} = {extraction.name}")
        for key in ("image_transforms", "sample_transforms"):
            for described in there.take(key, []):
                step = Fields(described, f"{there.where}: {key}: {described.get('name_')}", self.found)
                self.transform(step, options)
        for described in there.take("augmentations", []):
            self.found.tell(self.found.unplaced, f"{there.where}: augmentations: {described.get('name_')}")
        there.rest()
        return options

    def transform(self, step: Fields, options: dict[str, Any]) -> None:
        step.values.pop("copy", None)
        if step.name == "ZNormalization" and not step.values.get("masking_method"):
            options["transforms"].append({"name": "NormalizeIntensity"})
            self.found.tell(
                self.found.notes,
                "ZNormalization is MONAI's NormalizeIntensity here; n voxels differ by the factor sqrt(1 - 1/n).",
            )
        elif step.name == "RescaleIntensity" and not step.values.get("masking_method"):
            low, high = step.take("out_min_max", [0.0, 1.0])
            lower, upper = step.take("percentiles", [0.0, 100.0])
            name = "ScaleIntensityRangePercentiles"
            step_here = {"name": name, "lower": lower, "upper": upper, "b_min": low, "b_max": high, "clip": True}
            options["transforms"].append(step_here)
        elif step.name == "ToCanonical":
            options["canonical"] = True
        else:
            self.found.tell(self.found.unplaced, f"{step.where}; evaluations here see images without it")
            return
        step.rest()

    def groups(self, number: int) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
        """The rows of each group with what is known of them; and the results on test groups, by checkpoint."""
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
        """Participants and sessions of data.tsv, with the columns that dataset.json has of them."""
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
        """The groups as data sets, where the tree is there; settles classes and the shape of images."""
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
        """The classes by number: labels there are numbers, and a class that no label names has its number's name."""
        names = {_text(value) for value in values}
        count = 2 if self.two_classes else int((self.model.get("network") or {}).get("num_outputs", 2))
        numbers = [str(number) for number in range(count)]
        if not names <= set(numbers):
            self.found.tell(
                self.found.problems, f"labels {', '.join(sorted(names))} are not numbers of {count} classes"
            )
        return numbers

    # --- how it went

    def history(
        self, number: int, train: pd.DataFrame | None, values: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], int]:
        """One record per epoch, and the optimizer steps of an epoch."""
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
        """The last learning rate of each epoch, where one was logged."""
        for path in sorted((self.maps / folder / "logs/learning_rates").glob("*.tsv")):
            table = self.table(str(path.relative_to(self.maps)), ("epoch",))
            if table is None:
                continue
            columns = [column for column in table if column not in ("epoch", "batch")]
            for epoch, rows in table.groupby("epoch"):
                if 0 < epoch <= len(records):
                    last = max(float(rows[column].iloc[-1]) for column in columns)
                    name = "learning_rate" if path.stem == "optimizer" else f"learning_rate_{path.stem}"
                    records[int(epoch) - 1][name] = last

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
        """The network here that is the one there, if there is one."""
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
        """The weights in a model.pt, under our names where the network is here; None when they cannot be read."""
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
    """In the order in which our data sets have them."""
    pairs = zip(rows["participant_id"].astype(str), rows["session_id"].astype(str), strict=True)
    return sorted((Visit(*pair) for pair in pairs), key=order)


def _numbers(row: pd.Series) -> dict[str, float]:
    return {str(name): float(value) if not math.isnan(float(value)) else math.nan for name, value in row.items()}
