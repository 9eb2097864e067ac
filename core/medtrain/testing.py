"""The conformance kit: what a plugin author runs against a plugin, in a test or through `medtrain plugins check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from medtrain import plugins
from medtrain.config import Layers
from medtrain.data import Data
from medtrain.errors import MedtrainError
from medtrain.hookspecs import LIFECYCLE, NONE, hookimpl
from medtrain.metrics import BatchMetric
from medtrain.model import TensorModel
from medtrain.plugins import Plugins


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    what: str
    ok: bool
    detail: str = ""


class ToyVolumes:
    """Small 3-D volumes with a bright cube whose strength is the label; two volumes per participant.

    Samples: `image` float32 (1, size, size, size), `label` float32 (1,), `sample_id`, `participant_id`.
    """

    deterministic = True

    def __init__(self, count: int = 24, size: int = 8, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.labels = (torch.arange(count) // 2 % 2).float()
        self.images = torch.randn(count, 1, size, size, size, generator=generator)
        quarter = size // 4
        inner = slice(quarter, size - quarter)
        self.images[:, :, inner, inner, inner] += self.labels.view(-1, 1, 1, 1, 1)
        self.sample_ids = [f"volume-{i:03d}" for i in range(count)]
        self.participants = [f"sub-{i // 2:03d}" for i in range(count)]
        self.strata = [int(label) for label in self.labels]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "label": self.labels[index].view(1),
            "sample_id": self.sample_ids[index],
            "participant_id": self.participants[index],
        }


class ToyTask:
    """A complete task in a few lines: a small 3-D network on `ToyVolumes`. The floor under a plugin that lacks one."""

    def __init__(self, count: int = 24) -> None:
        self.count = count

    @hookimpl
    def build_data(self) -> Data:
        return Data(whole=ToyVolumes(self.count))

    @hookimpl
    def build_model(self) -> nn.Module:
        layers = [nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Flatten(), nn.Linear(32, 1)]
        return TensorModel(nn.Sequential(*layers))

    @hookimpl
    def build_loss(self) -> Any:
        return lambda outputs, batch: nn.functional.binary_cross_entropy_with_logits(outputs["logits"], batch["label"])

    @hookimpl
    def build_metrics(self) -> list[Any]:
        return [BatchMetric("accuracy", _accuracy, "logits", "label")]


def check_plugin(plugin: str | Any, *, train: bool = True) -> list[Finding]:
    """Check a plugin (a name, or an object with hooks) the way medtrain will use it.

    Hooks and their arguments; options that can be built from nothing; and, with `train`, two epochs on CPU in a
    temporary folder, evaluation and resume included, the toy task standing in for what the plugin does not build.
    A plugin with data of its own must have a preset `demo` to be trained here.
    """
    findings: list[Finding] = []
    try:
        loaded = plugins.load(plugin) if isinstance(plugin, str) else plugins.check(type(plugin).__name__, plugin)
    except MedtrainError as error:
        return [Finding("can be loaded, hooks and arguments are known", False, str(error))]
    findings.append(Finding("can be loaded, hooks and arguments are known", True))
    try:
        model = loaded.options()
        layers = Layers()
        layers.add({"run": {"plugins": [loaded.name]}}, "check")
        layers.build({loaded.name: model})
        findings.append(Finding("options can be built from their defaults", True))
    except MedtrainError as error:
        findings.append(Finding("options can be built from their defaults", False, str(error)))
    for hook, function in loaded.hooks.items():
        documented = bool((getattr(function, "__doc__", "") or "").strip()) or hook in LIFECYCLE
        findings.append(Finding(f"{hook} can be called", callable(function), "" if documented else "no docstring"))
    if train and all(finding.ok for finding in findings) and "build_data" not in loaded.hooks:
        findings.append(_trains(loaded))
    return findings


def _trains(loaded: plugins.Loaded) -> Finding:
    import tempfile
    from pathlib import Path

    from medtrain.trainer import Trainer

    what = "trains two epochs, resumes and evaluates"
    try:
        with tempfile.TemporaryDirectory() as folder:
            layers = Layers()
            layers.add({"run": {"plugins": [loaded.name]}, "computational": {"device": "cpu"}}, "check")
            layers.add({"optimization": {"num_epochs": 2}}, "check")
            toy = plugins.check("toy", ToyTask())
            config = layers.build({loaded.name: loaded.options()})
            run = Path(folder) / "run"
            trainer = Trainer(run, plugins=[toy, loaded], config=config)
            result = trainer.train()
            if result.epochs != 2:
                return Finding(what, False, f"it stopped after {result.epochs} epochs")
            trainer.resume()
            trainer.evaluate("validation")
    except Exception as error:  # whatever the plugin does wrong is the finding
        return Finding(what, False, f"{type(error).__name__}: {error}")
    return Finding(what, True)


def assert_conforms(plugin: str | Any) -> None:
    """`check_plugin` as an assertion, for a plugin's own test suite."""
    failed = [f"{finding.what}: {finding.detail}" for finding in check_plugin(plugin) if not finding.ok]
    assert not failed, "; ".join(failed)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return ((logits > 0) == (labels > 0.5)).float().mean()


__all__ = ["NONE", "Finding", "Plugins", "ToyTask", "ToyVolumes", "assert_conforms", "check_plugin"]
