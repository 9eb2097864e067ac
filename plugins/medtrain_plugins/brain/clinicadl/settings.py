"""The settings of a ClinicaDL 2.0 training as a medtrain configuration; settings without a counterpart are reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medtrain_plugins.brain.clinicadl.files import Fields, Files
from medtrain_plugins.brain.clinicadl.networks import Counterpart

LOSSES = {"MSELoss": "mse", "L1Loss": "l1", "HuberLoss": "huber", "SmoothL1Loss": "huber"}


class MapsSettings(Files):
    """The configuration files of a MAPS, split by split."""

    def __init__(self, maps: Path, images: Path | None) -> None:
        super().__init__(maps)
        self.images = images
        self.model = self.json("model.json")
        self.counterpart: Counterpart | None = None
        self.reason = ""

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
        optimization.take("reset_model")  # in medtrain every split starts from weights of its own
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
        """The plugin's options that follow from the loss and the dataset."""
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
        """File type, tree and transforms of dataset.json."""
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
