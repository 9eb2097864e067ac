"""The conformance kit finds what is wrong with a plugin, and says it; the first case of each kind is a sound one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from medtrain import BatchMetric, Data, TensorModel, hookimpl
from medtrain.config import SectionModel
from medtrain.testing import ToyTask, ToyVolumes, assert_conforms, check_plugin
from pydantic import BaseModel, Field
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce


class WithModel:
    """A model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @hookimpl
    def build_model(self) -> nn.Module:
        return self.model


class WithLoss:
    """A loss."""

    def __init__(self, loss: Callable[..., Any]) -> None:
        self.loss = loss

    @hookimpl
    def build_loss(self) -> Callable[..., Any]:
        return self.loss


class WithOptions:
    """Options."""

    def __init__(self, model: type[BaseModel]) -> None:
        self.model = model

    @hookimpl
    def plugin_options(self) -> type[BaseModel]:
        return self.model


class WithScheduler:
    """A scheduler."""

    def __init__(self, scheduler: Callable[..., Any]) -> None:
        self.scheduler = scheduler

    @hookimpl
    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return self.scheduler(optimizer)


class Renamed(BatchMetric):
    """Names one value and computes another."""

    def compute(self, rows: Any) -> dict[str, float]:
        return {f"{name}_of_all": value for name, value in super().compute(rows).items()}


class WithMetric:
    """A metric."""

    @hookimpl
    def build_metrics(self) -> list[Any]:
        return [Renamed("mean", lambda logits, labels: logits.mean(), "logits", "label")]


class Counting:
    """Changes the rate after its fifth step, and can or cannot remember how many there were."""

    def __init__(self) -> None:
        self.steps = 0

    @hookimpl
    def on_step_end(self, run: Any) -> None:
        self.steps += 1
        if self.steps == 5:
            run.optimizer.param_groups[0]["lr"] = 0.1


class Remembering(Counting):
    """The same, and it can."""

    def state_dict(self) -> dict[str, int]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


class Own(ToyTask):
    """A task with data of its own, under keys of its own."""

    @hookimpl
    def build_data(self) -> Data:
        class Volumes(ToyVolumes):
            def __getitem__(self, index: int) -> dict[str, Any]:
                sample = super().__getitem__(index)
                return {"volume": sample.pop("image"), **sample}

        return Data(whole=Volumes())

    @hookimpl
    def build_model(self) -> nn.Module:
        return TensorModel(nn.Sequential(nn.Flatten(), nn.Linear(512, 1)), input="volume")


class Plain(nn.Module):
    """Takes a batch as it should, and returns a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(512, 1)

    def forward(self, batch: dict[str, Any]) -> torch.Tensor:
        logits: torch.Tensor = self.layer(batch["image"].flatten(1))
        return logits


class Impatient:
    """Ends every run."""

    @hookimpl
    def on_epoch_end(self, run: Any) -> None:
        run.request_stop("enough")


class Linear(nn.Module):
    """One linear layer, and perhaps one that is never used."""

    def __init__(self, key: str = "image", spare: bool = False) -> None:
        super().__init__()
        self.key, self.layer = key, nn.Linear(512, 1)
        self.spare = nn.Linear(3, 3) if spare else None

    def forward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"logits": self.layer(batch[self.key].flatten(1))}


class Terms:
    """A loss of a pair with its weights announced; `off` spoils the announcement."""

    def __init__(self, off: float = 0.0) -> None:
        self.off = off

    def __call__(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        return {"bce": (bce(outputs["logits"], batch["label"], reduction="sum"), float(len(batch["label"])))}

    def weights(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"bce": torch.tensor(len(batch["label"]) + self.off)}


class Sound(SectionModel):
    size: int = Field(3, description="how large")


class Ignoring(BaseModel):
    size: int = Field(3, description="how large")


class Demanding(SectionModel):
    size: int = Field(description="how large")


class Bare(SectionModel):
    size: int = 3


class OnlySteps:
    def step(self) -> None: ...


SOUND: dict[str, Callable[[], Any]] = {
    "task": ToyTask,
    "own data": Own,
    "model": lambda: WithModel(Linear()),
    "loss": lambda: WithLoss(Terms()),
    "options": lambda: WithOptions(Sound),
    "scheduler": lambda: WithScheduler(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1)),
    "state": Remembering,
}
FAULTS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "no dict": (lambda: WithModel(Plain()), "returns a dict", "it returns Tensor; medtrain.TensorModel"),
    "wrong key": (lambda: WithModel(Linear("scan")), "returns a dict", "asks for 'scan'; the batch has image, label"),
    "unused parameter": (lambda: WithModel(Linear(spare=True)), "reach every trainable", "none at spare.weight"),
    "loss without graph": (lambda: WithLoss(lambda o, b: torch.tensor(1.0)), "gradients are finite", "grad"),
    "loss per sample": (lambda: WithLoss(lambda o, b: o["logits"]), "finite scalar terms", "both must be scalars"),
    "loss as float": (lambda: WithLoss(lambda o, b: 1.0), "finite scalar terms", "neither a scalar tensor"),
    "loss not finite": (lambda: WithLoss(lambda o, b: o["logits"].sum() / 0), "finite scalar terms", "the sum is"),
    "gradient not finite": (
        lambda: WithLoss(lambda o, b: (o["logits"] * 0).sum().abs().sqrt()),
        "gradients are finite",
        "not finite: ",
    ),
    "weights differ": (lambda: WithLoss(Terms(off=1.0)), "finite scalar terms", "announces {'bce': 9.0}"),
    "misspelt options ignored": (lambda: WithOptions(Ignoring), "unknown ones are refused", "would be ignored"),
    "option without default": (lambda: WithOptions(Demanding), "options have defaults", "size: field required"),
    "option without description": (lambda: WithOptions(Bare), "options have defaults", "no description: size"),
    "metric's name": (WithMetric, "values they name", "names ['mean'] but returns ['mean_of_all']"),
    "no scheduler": (lambda: WithScheduler(lambda o: OnlySteps()), "can be built", "has no state_dict"),
    "negative rate": (
        lambda: WithScheduler(lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda epoch: 1 - 2 * epoch)),
        "sane learning rates",
        "the learning rates are [0.001",
    ),
    "never ends well": (Impatient, "two epochs train", "the run ended after epoch 1"),
    "forgotten state": (Counting, "resumed run ends with the same", "not the same: weights"),
}


@pytest.mark.parametrize("case", SOUND)
def test_sound_plugins_conform(case: str) -> None:
    assert_conforms(SOUND[case]())


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_found(case: str) -> None:
    make, what, detail = FAULTS[case]
    *before, last = check_plugin(make())
    assert all(finding.ok for finding in before)
    assert not last.ok
    assert what in last.what
    assert detail in last.detail


def test_a_plugin_that_cannot_be_loaded_is_one_finding() -> None:
    (finding,) = check_plugin("no_such_plugin")
    assert not finding.ok
    assert "there is no plugin 'no_such_plugin'" in finding.detail


def test_nothing_is_trained_when_that_is_not_wanted() -> None:
    assert [finding.what for finding in check_plugin(ToyTask(), train=False)] == [
        "hooks are known and take known arguments",
        "a docstring says what it is",
        "options have defaults and descriptions, unknown ones are refused",
    ]
