"""A plugin sets `requires_grad` at an epoch's start, and the run follows: what learns, and at which rate."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Run, TensorModel, Trainer, hookimpl
from medtrain.errors import ConfigError
from medtrain.rundir import Maps
from safetensors.torch import load_file
from torch import nn

THAWED, FROZEN, BOTH = (False, True, True), (True, False, False), (True, False, True)
# 3 steps per epoch; every epoch and every step is kept.
TASK = (
    "optimization.num_epochs=3",
    "optimization.learning_rate=0.05",
    "checkpoint.every_n_epochs=1",
    "checkpoint.every_n_steps=1",
    "scheduler.name=cosine",
)
OPTIMIZERS = {
    "SGD": ("optimization.optimizer=SGD", "optimization.options={momentum=0.9}", "optimization.weight_decay=0.1"),
    "AdamW": ("optimization.weight_decay=0.1",),
}


class Net(nn.Module):
    """An encoder and a head."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), norm(8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x))
        return logits


class Builds:
    """Builds the net, and notes at each step what the optimizer holds and which mode the encoder is in."""

    def __init__(self, learns: bool = True, norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        self.learns, self.norm = learns, norm
        self.groups: list[dict[str, tuple[str, float, float]]] = []
        self.training: list[set[bool]] = []

    @hookimpl
    def build_model(self) -> nn.Module:
        net = Net(self.norm)
        net.encoder.requires_grad_(self.learns)
        return TensorModel(net, input="features")

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        assert run.optimizer is not None
        names = {parameter: name for name, parameter in run.model.named_parameters()}
        members = [(names[parameter], group) for group in run.optimizer.param_groups for parameter in group["params"]]
        assert len({name for name, _ in members}) == len(members), "a parameter is in two groups"
        self.groups.append({name: (group["name"], group["lr"], group["weight_decay"]) for name, group in members})
        self.training.append({module.training for module in run.model.get_submodule("encoder").modules()})


class Follows(Builds):
    """Lets the encoder learn in some epochs only."""

    def __init__(self, epochs: tuple[bool, ...], norm: Callable[[int], nn.Module] = nn.BatchNorm1d) -> None:
        super().__init__(epochs[0], norm)
        self.epochs = epochs

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        run.model.get_submodule("encoder").requires_grad_(self.epochs[run.epoch])


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / "split-0" / checkpoint / "model.safetensors")


def moves(run: Path) -> tuple[bool, bool]:
    """Whether the encoder, statistics included, changed in the second and in the third epoch."""
    ends = [weights(run, f"epoch-000{number}") for number in (1, 2, 3)]
    names = [name for name in ends[0] if name.startswith("encoder.")]
    changed = [{not torch.equal(a[name], b[name]) for name in names} for a, b in pairwise(ends)]
    assert all(len(found) == 1 for found in changed), "some of it moved, and some did not"
    return changed[0].pop(), changed[1].pop()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_thawed_learns_as_with_transfer(trainer: Callable[..., Trainer], name: str) -> None:
    """Bit for bit what `transfer.freeze_epochs` makes of it; the head keeps its momentum."""
    run = trainer("run", *TASK, *OPTIMIZERS[name], callbacks=[Follows(THAWED)]).train().maps
    assert moves(run) == (True, True)
    freeze = ('transfer.freeze=["encoder.*"]', "transfer.freeze_epochs=1")
    wanted = weights(trainer("transfer", *TASK, *OPTIMIZERS[name], *freeze, callbacks=[Builds()]).train().maps)
    assert [key for key, value in weights(run).items() if not torch.equal(value, wanted[key])] == []


def test_what_is_thawed_has_the_rate_and_decay_of_its_group(trainer: Callable[..., Trainer]) -> None:
    """As in a run in which it was never frozen."""
    groups = 'optimization.groups=[{pattern="encoder.*", lr_scale=0.1, weight_decay=0.3}]'
    thawed, free = Follows(THAWED), Follows((True, True, True))
    for name, follows in {"thawed": thawed, "free": free}.items():
        trainer(name, *TASK, groups, "optimization.decay_norm_and_bias=false", callbacks=[follows]).train()
    assert {len(groups) for groups in free.groups} == {6}
    for groups_thawed, groups_free in zip(thawed.groups, free.groups, strict=True):
        for name, (group, rate, decay) in groups_thawed.items():
            assert (group, pytest.approx(rate), decay) == groups_free[name]
    assert [set(groups) for groups in thawed.groups[3:]] == [set(free.groups[0])] * 6


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_frozen_rests(trainer: Callable[..., Trainer], name: str) -> None:
    """Neither momentum nor weight decay moves it, and its statistics rest too."""
    follows = Follows(FROZEN)
    run = trainer("run", *TASK, *OPTIMIZERS[name], callbacks=[follows]).train().maps
    assert moves(run) == (False, False)
    assert follows.training == [{True}] * 3 + [{False}] * 6
    head = [weights(run, f"epoch-000{number}")["head.weight"] for number in (1, 2, 3)]
    assert not torch.equal(head[0], head[1]) and not torch.equal(head[1], head[2])


@pytest.mark.parametrize("step", [2, 3, 4, 8])
@pytest.mark.parametrize(
    "epochs",
    [pytest.param(THAWED, id="thawed"), pytest.param(FROZEN, id="frozen"), pytest.param(BOTH, id="both")],
)
def test_resumed_before_and_after_the_change(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], epochs: tuple[bool, ...], step: int
) -> None:
    """The change comes after step 3."""
    run = trainer("run", *TASK, callbacks=[Follows(epochs)]).train().maps
    assert moves(run) == epochs[1:]
    before = outcome(run)
    Trainer.from_maps(run, callbacks=[Follows(epochs)]).resume(checkpoint=f"step-{step:08d}")
    assert outcome(run) == before


@pytest.mark.parametrize("epochs", [THAWED, FROZEN, BOTH], ids=["thawed", "frozen", "both"])
def test_two_processes_equal_one(
    trainer: Callable[..., Trainer], forked: Callable[..., None], tmp_path: Path, epochs: tuple[bool, ...]
) -> None:
    """Also when they are resumed; statistics of a batch would not be the same, so there are none."""

    def ends() -> list[Any]:
        return [json.loads((tmp_path / f"end-{rank}").read_text())["weights"] for rank in (0, 1)]

    def follows() -> Follows:
        return Follows(epochs, nn.LayerNorm)

    halves = ("data.batch_size=4", f"toy_plugin.witness={tmp_path}")
    forked(trainer("two", *TASK, *halves, callbacks=[follows()]).train, ranks=2)
    run = tmp_path / "two"
    first, second = ends()
    assert first == second
    assert moves(run) == epochs[1:]
    whole = trainer("one", *TASK, callbacks=[follows()]).train().maps
    for name, value in weights(whole).items():
        assert torch.allclose(weights(run)[name], value, atol=1e-5), name
    for record, wanted in zip(Maps.open(run).split(0).history(), Maps.open(whole).split(0).history(), strict=True):
        assert record == pytest.approx(wanted, abs=1e-5)
    for step in (2, 4):
        resumed = Trainer.from_maps(run, callbacks=[follows()])
        forked(lambda: resumed.resume(checkpoint=f"step-{step:08d}"), ranks=2)  # noqa: B023 - runs at once
        assert ends() == [first, first]


GROUPS = 'optimization.groups=[{pattern="encoder.0.*", lr_scale=0.1}, {pattern="encoder.1.*", lr_scale=0.5}]'


class OneByOne(Builds):
    """Lets the norm learn in the second epoch, in a group of its own, and the layer before it in the third."""

    def __init__(self) -> None:
        super().__init__(learns=False)

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        for part, epoch in (("encoder.1", 1), ("encoder.0", 2)):
            run.model.get_submodule(part).requires_grad_(run.epoch >= epoch)


@pytest.mark.parametrize("step", [3, 5, 7])
def test_new_groups_are_resumed_in_the_order_they_came(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], step: int
) -> None:
    follows = OneByOne()
    run = trainer("run", *TASK, GROUPS, callbacks=[follows]).train().maps
    assert [len(groups) for groups in follows.groups] == [2] * 3 + [4] * 3 + [6] * 3
    assert list(dict.fromkeys(group for group, _, _ in follows.groups[8].values())) == [
        "rest",
        "encoder.1.*",
        "encoder.0.*",
    ]
    before = outcome(run)
    Trainer.from_maps(run, callbacks=[OneByOne()]).resume(checkpoint=f"step-{step:08d}")
    assert outcome(run) == before


@pytest.mark.parametrize("name", ["OneCycleLR", "StepLR"])
def test_a_schedule_that_cannot_take_up_a_group(trainer: Callable[..., Trainer], name: str) -> None:
    options = {"OneCycleLR": "{max_lr=0.1}", "StepLR": "{step_size=1}"}[name]
    changes = (*TASK, GROUPS, f"scheduler.name={name}", f"scheduler.options={options}")
    with pytest.raises(ConfigError, match=r"encoder\.1\.\*.*cannot take a group up in mid-run"):
        trainer("run", *changes, callbacks=[OneByOne()]).train()


def test_what_no_group_is_built_for(trainer: Callable[..., Trainer]) -> None:
    class HeadOnly(Follows):
        @hookimpl
        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD([{"params": model.get_submodule("head").parameters(), "name": "head"}], lr=0.1)

    with pytest.raises(ConfigError, match=r"'encoder\.0\.weight' trains from now on, but build_optimizer"):
        trainer("run", *TASK, callbacks=[HeadOnly(THAWED)]).train()


def test_an_optimizer_of_the_plugin_without_names(trainer: Callable[..., Trainer]) -> None:
    """A group without a name is known by what else is in it."""

    class Own(Follows):
        @hookimpl
        def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)

        @hookimpl
        def on_step_end(self, run: Run) -> None:
            assert run.optimizer is not None
            self.training.append({len(group["params"]) for group in run.optimizer.param_groups})  # type: ignore[arg-type]

    follows = Own(THAWED)
    run = trainer("run", *TASK, callbacks=[follows]).train().maps
    assert follows.training == [{2}] * 3 + [{6}] * 6 and moves(run) == (True, True)
