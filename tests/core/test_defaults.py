"""Optimizer groups, schedules and the idea of an improvement, when no plugin answers."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.config import OptimizationSection, RunConfig, SchedulerSection
from medtrain.errors import ConfigError
from medtrain.protocols.schedule import Plan, Schedule
from medtrain_plugins.standard.early_stopping import Improvement
from medtrain_plugins.standard.optimizers import build_optimizer, parameter_groups
from medtrain_plugins.standard.schedules import WarmupSchedule
from torch import nn

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "warmup.json").read_text())["linear_warmup"]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.head = nn.Linear(2, 1)


def sections(**optimization: Any) -> OptimizationSection:
    return OptimizationSection.model_validate(optimization)


def test_groups_by_pattern_the_first_match_wins() -> None:
    settings = sections(
        learning_rate=0.1,
        weight_decay=0.5,
        groups=[
            {"pattern": "encoder.bias", "weight_decay": 0.0},
            {"pattern": "encoder.*", "lr_scale": 0.1},
        ],
    )
    net = Net()
    groups = {group["name"]: group for group in parameter_groups(settings, net)}
    assert groups["encoder.bias"]["params"] == [net.encoder.bias]
    assert (groups["encoder.bias"]["lr"], groups["encoder.bias"]["weight_decay"]) == (0.1, 0.0)
    assert groups["encoder.*"]["params"] == [net.encoder.weight]
    assert groups["encoder.*"]["lr"] == pytest.approx(0.01)
    assert groups["encoder.*"]["weight_decay"] == 0.5
    assert list(map(id, groups["rest"]["params"])) == list(map(id, [*net.norm.parameters(), *net.head.parameters()]))


def test_frozen_parameters_stay_out_and_empty_groups_go() -> None:
    net = Net()
    net.encoder.requires_grad_(False)
    groups = parameter_groups(sections(groups=[{"pattern": "encoder.*"}]), net)
    assert [group["name"] for group in groups] == ["rest"]
    held = {id(p) for group in groups for p in group["params"]}
    assert held.isdisjoint(id(p) for p in net.encoder.parameters())


def test_patterns_without_a_match_and_models_without_parameters() -> None:
    with pytest.raises(ConfigError, match=r"optimization\.groups: no parameter of the model is called 'encodr\.\*'"):
        parameter_groups(sections(groups=[{"pattern": "encodr.*"}]), Net())
    with pytest.raises(ConfigError, match="no trainable parameter"):
        parameter_groups(sections(), Net().requires_grad_(False))


def test_the_default_optimizer_is_adamw() -> None:
    config = RunConfig()
    config.optimization = sections(learning_rate=0.25, weight_decay=0.125)
    optimizer = build_optimizer(config, Net())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.25, 0.125)


def made(plan: Plan | None = None, rates: tuple[float, ...] = (1.0,), **settings: Any) -> WarmupSchedule:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    section = SchedulerSection.model_validate(settings)
    return WarmupSchedule(section, torch.optim.SGD(groups, lr=1.0), plan or Plan(10, 4, "fit", "max"))


def rates(schedule: Any) -> list[float]:
    return [group["lr"] for group in schedule.optimizer.param_groups]


def epochs(schedule: WarmupSchedule, values: list[float | None], steps: int = 4) -> list[float]:
    """The rate after each epoch."""
    found = []
    for value in values:
        for _ in range(steps):
            schedule.after_step()
        schedule.after_epoch(value)
        found.append(rates(schedule)[0])
    return found


@pytest.mark.parametrize(("pair", "wanted"), zip(GOLDEN["inputs"]["pairs"], GOLDEN["outputs"]["mult"], strict=True))
def test_golden_warmup(pair: list[int], wanted: float) -> None:
    step, warmup = pair
    schedule = made(warmup_steps=warmup)
    for _ in range(step):
        schedule.after_step()
    assert schedule.multiplier() == pytest.approx(wanted, abs=1e-12)
    assert rates(schedule)[0] == pytest.approx(wanted, abs=1e-12)


def test_groups_keep_their_proportions() -> None:
    schedule = made(rates=(1.0, 0.1), warmup_steps=10, name="cosine")
    for _ in range(25):
        schedule.after_step()
        fast, slow = rates(schedule)
        assert slow == pytest.approx(0.1 * fast)


def test_constant() -> None:
    assert epochs(made(), [None, 0.5, 0.1]) == [1.0, 1.0, 1.0]


def test_step() -> None:
    found = epochs(made(name="step", step_size=2, factor=0.1, min_lr=0.005), [None] * 7)
    assert found == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.005, 0.005])


def test_cosine_goes_from_one_to_its_floor() -> None:
    schedule = made(Plan(10, 4, "fit", "max"), name="cosine", warmup_steps=8, min_lr=0.2)
    found = []
    for _ in range(45):
        found.append(schedule.multiplier())
        schedule.after_step()
    assert found[:8] == pytest.approx([i / 8 for i in range(8)])
    assert found[8] == 1.0
    assert found[24] == pytest.approx(0.6)
    assert found[40:] == pytest.approx([0.2] * 5)
    assert all(a >= b for a, b in pairwise(found[8:]))
    assert found[16] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_plateau_bears_patience_and_stops_at_its_floor() -> None:
    schedule = made(name="plateau", patience=1, factor=0.5, min_lr=0.3)
    found = epochs(schedule, [0.5, 0.6, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7])
    assert found == pytest.approx([1, 1, 1, 0.5, 0.5, 0.5, 0.3, 0.3, 0.3])


def test_plateau_of_a_loss() -> None:
    schedule = made(Plan(9, 4, "loss", "min"), name="plateau", patience=0)
    assert epochs(schedule, [0.5, 0.4, 0.45]) == [1.0, 1.0, 0.5]


def test_plateau_waits_for_the_warmup_and_for_evaluations() -> None:
    schedule = made(name="plateau", patience=0, warmup_steps=8)
    assert epochs(schedule, [0.5, 0.4, 0.4]) == [0.5, 1.0, 0.5]
    assert epochs(schedule, [None, None]) == [0.5, 0.5]


@pytest.mark.parametrize("name", ["none", "step", "cosine", "plateau"])
def test_schedules_resume_where_they_were(name: str) -> None:
    settings = {"name": name, "warmup_steps": 6, "step_size": 2, "patience": 0}
    values = [0.5, 0.4, 0.6, 0.6, 0.3, 0.2, 0.1]
    whole = epochs(made(**settings), values)
    first = made(**settings)
    epochs(first, values[:3])
    second = made(**settings)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert rates(second) == rates(first)
    assert epochs(second, values[3:]) == whole[3:]


def test_a_torch_scheduler_per_epoch_or_per_step() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    optimizer.step()
    slow = Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    slow.after_step()
    assert optimizer.param_groups[0]["lr"] == 1.0
    slow.after_epoch(None)
    assert optimizer.param_groups[0]["lr"] == 0.5
    fast = Schedule(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1), "step")
    fast.after_step()
    fast.after_epoch(0.3)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    state = fast.state_dict()
    fast.after_step()
    fast.load_state_dict(state)
    assert fast.state_dict() == state


def test_a_torch_plateau_gets_the_value_when_there_is_one() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = Schedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0))
    for value in (0.5, None, None, 0.6):
        schedule.after_epoch(value)
    assert optimizer.param_groups[0]["lr"] == 1.0
    schedule.after_epoch(0.6)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


def test_improvement() -> None:
    best = Improvement("max", min_delta=0.1)
    given = [math.nan, 0.5, 0.55, math.nan, 0.7]
    assert [best.update(value, epoch) for epoch, value in enumerate(given)] == [False, True, False, False, True]
    assert (best.best, best.epoch, best.since) == (0.7, 4, 0)
    least = Improvement("min")
    assert [least.update(value, epoch) for epoch, value in enumerate([0.0, 0.0, -1.0])] == [True, False, True]
    again = Improvement("min")
    again.load_state_dict(least.state_dict())
    assert again.state_dict() == {"best": -1.0, "epoch": 2, "since": 0}
    assert not again.update(math.nan, 3) and again.since == 1
