"""A complete task trained in milliseconds: a masked multi-label loss on vectors, steered by its options.

It lies on the tests' path as an installed distribution does, so that subprocesses find it by name.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from medtrain import Data, Run, RunConfig, TensorModel, Undefined, hookimpl
from pydantic import BaseModel, ConfigDict
from torch import nn


class Options(BaseModel):
    """What the tests turn."""

    model_config = ConfigDict(extra="forbid")

    samples: int = 23
    validation: int = 9
    test: int = 5
    dropout: float = 0.0
    noise: float = 0.0
    shift: float = 0.0
    wait: float = 0.0
    nan_from: int = -1
    undefined: bool = False
    witness: str = ""
    fail_at: int = -1


class Vectors:
    """Samples of 4 features and 3 labels, some of them masked, for `count` participants from number `first` on."""

    def __init__(self, first: int, count: int, noise: float = 0.0, nan_from: int = -1) -> None:
        self.noise, self.nan_from = noise, nan_from
        self.deterministic = noise == 0
        self.sample_ids = [f"sample-{first + i:03d}" for i in range(count)]
        self.participants = [f"sub-{first + i:03d}" for i in range(count)]
        generator = torch.Generator().manual_seed(first + 1)
        self.features = torch.randn(count, 4, generator=generator)
        weights = torch.linspace(-1, 1, 12).view(4, 3)
        self.targets = (self.features @ weights + 0.3 * torch.randn(count, 3, generator=generator) > 0).float()
        self.masks = (torch.rand(count, 3, generator=generator) > 0.4).float()
        self.masks[4::5] = 0.0

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> dict[str, Any]:
        features = self.features[index]
        if self.noise:
            drawn = torch.rand(4) + torch.from_numpy(np.random.rand(4)).float() + random.random()  # noqa: NPY002
            features = features + self.noise * drawn
        if index == self.nan_from:
            features = features * torch.nan
        return {
            "features": features,
            "target": self.targets[index],
            "mask": self.masks[index],
            "sample_id": self.sample_ids[index],
        }


class MaskedLoss:
    """Two terms: masked cross-entropy over labels, and the masked squared size of the logits."""

    def weights(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"risk": batch["mask"].sum(), "size": batch["mask"][:, 0].sum()}

    def __call__(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        logits, weights = outputs["logits"], self.weights(batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        entropy = nn.functional.binary_cross_entropy_with_logits(logits, batch["target"], reduction="none")
        size = 0.1 * (logits[:, 0] ** 2 * batch["mask"][:, 0]).sum()
        return {"risk": ((entropy * batch["mask"]).sum(), weights["risk"]), "size": (size, weights["size"])}


class Fit:
    """Minus the masked Brier score."""

    names = ("fit",)
    mode = "max"

    def __init__(self, undefined: bool = False) -> None:
        self.undefined = undefined

    def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        return {"logits": outputs["logits"], "target": batch["target"], "mask": batch["mask"]}

    def compute(self, rows: dict[str, Any]) -> dict[str, float]:
        if self.undefined:
            return {"fit": Undefined("no label is known")}
        error = (1 / (1 + np.exp(-rows["logits"].astype(np.float64))) - rows["target"]) ** 2
        return {"fit": -float((error * rows["mask"]).sum() / rows["mask"].sum())}

    def details(self, rows: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"counted": len(rows["sample_id"]), "seed": seed}


class Shift:
    """Adds one number per sample."""

    def __init__(self, size: float) -> None:
        self.size = size

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"shift": self.size * torch.randn(1, generator=generator)}

    def __call__(self, batch: dict[str, Any], draws: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {**batch, "features": batch["features"] + draws["shift"]}


def _options(config: RunConfig) -> Options:
    return config.options("toy_plugin")


@hookimpl
def plugin_options() -> type[BaseModel]:
    """The toy's options."""
    return Options


@hookimpl
def build_data(config: RunConfig) -> Data:
    """Three groups of vectors."""
    settings = _options(config)
    return Data(
        train=Vectors(0, settings.samples, settings.noise, settings.nan_from),
        validation=Vectors(500, settings.validation),
        test=Vectors(800, settings.test),
        about={"source": "made up"},
    )


@hookimpl
def build_model(config: RunConfig) -> nn.Module:
    """Two linear layers with dropout between."""
    layers = [nn.Linear(4, 8), nn.ReLU(), nn.Dropout(_options(config).dropout), nn.Linear(8, 3)]
    return TensorModel(nn.Sequential(*layers), input="features")


@hookimpl
def build_loss() -> Any:
    """The masked loss."""
    return MaskedLoss()


@hookimpl
def build_metrics(config: RunConfig) -> list[Any]:
    """Minus the Brier score."""
    return [Fit(_options(config).undefined)]


@hookimpl
def build_augmentation(config: RunConfig) -> Any:
    """A random shift, when it is asked for."""
    size = _options(config).shift
    return Shift(size) if size else None


@hookimpl
def predict(run: Run, sample: Any) -> Any:
    """Logits of the vectors in a text file, one line of comma-separated numbers each."""
    import pandas as pd

    lines = Path(sample).read_text().split()
    with torch.no_grad():
        logits = run.model(torch.tensor([[float(part) for part in line.split(",")] for line in lines]))
    return pd.DataFrame(logits.numpy(), columns=["a", "b", "c"])


@hookimpl
def on_step_end(run: Run) -> None:
    """Waits, so that a test can interrupt the run from outside, and notes the learning rate of this process."""
    settings = _options(run.config)
    time.sleep(settings.wait)
    if run.step == settings.fail_at and run.is_main_process:
        raise ValueError("the tracker is away")
    if settings.witness and run.optimizer is not None:
        with _witness(settings, "rates").open("a") as file:
            file.write(f"{run.optimizer.param_groups[0]['lr']!r}\n")


@hookimpl
def on_run_end(run: Run) -> None:
    """Writes what this process ended with."""
    settings = _options(run.config)
    if settings.witness:
        weights = {name: value.tolist() for name, value in run.model.state_dict().items()}
        facts = {"weights": weights, "epoch": run.epoch, "step": run.step, "metrics": run.metrics}
        _witness(settings, "end").write_text(json.dumps(facts))


def _witness(settings: Options, what: str) -> Path:
    return Path(settings.witness) / f"{what}-{os.environ.get('RANK', '0')}"
