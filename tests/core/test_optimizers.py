"""Optimizers by name, exempt and frozen parameters, several optimizers, clipping, budgets, steps that are left out."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Trainer, hookimpl
from medtrain.config import ComputationalSection, OptimizationSection, RunConfig, SchedulerSection
from medtrain.errors import ConfigError, DivergedError, Preempted
from medtrain.protocols.schedule import Plan
from medtrain.rundir.directory import Maps
from medtrain.runtime.distributed import join
from medtrain.training.optimizers import Optimizers
from medtrain_plugins.standard.optimizers import build_optimizer, freeze, parameter_groups
from medtrain_plugins.standard.schedules import build_schedule
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        self.seen = self.encoder(batch["features"])
        return {"logits": self.head(self.seen)}


def made(**settings: Any) -> torch.optim.Optimizer:
    config = RunConfig()
    config.optimization = OptimizationSection.model_validate(settings)
    return build_optimizer(config, Net())


@pytest.mark.parametrize("name", ["adam", "SGD", "rmsprop", "Adagrad", "adadelta", "NAdam", "rprop"])
def test_any_optimizer_of_torch_by_name(name: str) -> None:
    assert type(made(optimizer=name)).__name__.lower() == name.lower()


def test_options_reach_the_optimizer() -> None:
    sgd = made(optimizer="sgd", options={"momentum": 0.9, "nesterov": True})
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)
    adam = made(options={"betas": [0.8, 0.99], "eps": 1e-6})
    assert (adam.defaults["betas"], adam.defaults["eps"]) == ((0.8, 0.99), 1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, r"torch.optim has no 'adamm' \(did you mean 'Adam'"),
        ({"optimizer": "LBFGS"}, "LBFGS cannot be used"),
        (
            {"options": {"momentun": 0.9}, "optimizer": "sgd"},
            r"options.momentun: SGD .*did you mean 'momentum'.*known: ",
        ),
        ({"options": {"lr": 0.9}}, "set optimization.learning_rate instead"),
        ({"options": {"betas": [2.0, 0.9]}}, "AdamW cannot be made with these options"),
    ],
)
def test_what_is_wrong_with_an_optimizer(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**settings)


def test_norms_and_biases_without_decay() -> None:
    net = Net()
    settings = OptimizationSection(weight_decay=0.5, decay_norm_and_bias=False)
    found = {group["name"]: group for group in parameter_groups(settings, net)}
    assert [group["weight_decay"] for group in found.values()] == [0.5, 0.0]
    assert list(map(id, found["rest"]["params"])) == [id(net.encoder[0].weight), id(net.head.weight)]
    assert len(found["rest (no decay)"]["params"]) == 4


def test_frozen_by_pattern(trainer: Callable[..., Trainer]) -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    run = trainer("run", 'optimization.freeze=["encoder.*"]', model=net)
    run.train()
    after = net.state_dict()
    assert all(torch.equal(value, after[key]) == key.startswith("encoder") for key, value in before.items())
    assert not net.seen.requires_grad
    with pytest.raises(ConfigError, match=r"optimization\.freeze: no parameter of the model is called 'encodr"):
        freeze(net, ["encodr.*"])


PLAN = Plan(6, 5, "loss", "min")


def course(steps: int = 30, plan: Plan = PLAN, state_at: int = -1, **settings: Any) -> list[list[float]]:
    """The rate of every step of two groups; resumed through JSON after `state_at` steps."""
    section = SchedulerSection.model_validate(settings)

    def fresh() -> tuple[Any, Any]:
        groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in (1.0, 0.1)]
        optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        return optimizer, build_schedule(section, optimizer, plan)

    optimizer, schedule = fresh()
    rates = []
    for step in range(steps):
        if step == state_at:
            state = json.loads(json.dumps(schedule.state_dict()))
            optimizer, schedule = fresh()
            schedule.load_state_dict(state)
        rates.append([group["lr"] for group in optimizer.param_groups])
        schedule.after_step()
        if (step + 1) % plan.steps_per_epoch == 0:
            schedule.after_epoch(0.5)
    return rates


COURSES: dict[str, dict[str, Any]] = {
    "exponential": {"factor": 0.5},
    "linear": {"min_lr": 0.1},
    "polynomial": {"power": 2.0},
    "multistep": {"milestones": [2, 4]},
    "onecycle": {},
    "cosine": {"interval": "epoch"},
    "CosineAnnealingWarmRestarts": {"options": {"T_0": 2}},
    "CyclicLR": {"options": {"base_lr": 0.1, "max_lr": 1.0, "step_size_up": 4}},
    "ExponentialLR": {"options": {"gamma": 0.5}},
    "ReduceLROnPlateau": {"options": {"patience": 0}},
}


@pytest.mark.parametrize("name", COURSES)
@pytest.mark.parametrize("warmup", [{}, {"warmup_epochs": 1.0}])
def test_every_course_moves_warms_up_and_resumes(name: str, warmup: dict[str, Any]) -> None:
    settings = {"name": name, **COURSES[name], **warmup}
    whole = course(**settings)
    assert len({round(rates[0], 9) for rates in whole[5:]}) > 1
    assert course(state_at=12, **settings) == whole
    if warmup:
        assert whole[0] == [0.0, 0.0]
        first = whole[5][0] if name in ("onecycle", "CyclicLR") else 1.0
        assert whole[1][0] == pytest.approx(first / 5, rel=1e-6)


def epochs_of(rates: list[list[float]]) -> list[float]:
    return [rate[0] for rate in rates[::5]]


def test_courses_equal_those_of_torch() -> None:
    pairs = {
        "ExponentialLR": ({"name": "exponential", "factor": 0.3}, {"gamma": 0.3}),
        "MultiStepLR": ({"name": "multistep", "milestones": [2, 3]}, {"milestones": [2, 3], "gamma": 0.5}),
        "CosineAnnealingLR": ({"name": "cosine", "interval": "epoch"}, {"T_max": 6}),
        "PolynomialLR": ({"name": "polynomial", "interval": "epoch", "power": 2.0}, {"total_iters": 6, "power": 2.0}),
        "StepLR": ({"name": "step", "step_size": 2}, {"step_size": 2, "gamma": 0.5}),
    }
    for name, (ours, theirs) in pairs.items():
        assert epochs_of(course(**ours)) == pytest.approx(epochs_of(course(name=name, options=theirs)), rel=1e-9), name


def test_intervals_and_the_step_budget() -> None:
    assert epochs_of(course(name="exponential", factor=0.5)) == [0.5**epoch for epoch in range(6)]
    by_step = course(name="exponential", factor=0.5, interval="step")
    assert [rates[0] for rates in by_step[:4]] == [1.0, 0.5, 0.25, 0.125]
    short = Plan(6, 5, "loss", "min", max_steps=10)
    assert course(11, short, name="linear")[10][0] == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "CosineAnealingLR"}, "did you mean 'CosineAnnealingLR'"),
        ({"name": "LambdaLR"}, "no scheduler is called 'LambdaLR'"),
        ({"name": "StepLR", "options": {"step_sise": 2}}, "options.step_sise: StepLR has no such option"),
        ({"name": "StepLR"}, "StepLR cannot be made"),
    ],
)
def test_what_is_wrong_with_a_scheduler(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        course(**settings)


def split_of(run: Path) -> Any:
    return Maps.open(run).split(0)


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_the_recorded_rate_is_the_one_that_trained(trainer: Callable[..., Trainer], name: str) -> None:
    used: list[float] = []

    class Rates:
        @hookimpl
        def on_epoch_start(self, run: Any) -> None:
            step = run.optimizer.step

            def note(*given: Any, **named: Any) -> Any:
                used.append(run.optimizer.param_groups[0]["lr"])
                return step(*given, **named)

            if run.epoch == 0:
                run.optimizer.step = note

    groups = 'optimization.groups=[{pattern="0.*", lr_scale=0.1}]'
    changes = (f"scheduler.name={name}", "scheduler.step_size=1", groups)
    history = split_of(trainer("run", *changes, callbacks=[Rates()]).train().maps).history()
    assert [record["learning_rate_0.*"] for record in history] == [used[2], used[5]]
    assert [record["learning_rate"] for record in history] == pytest.approx([used[2] * 10, used[5] * 10])
    assert used[2] != used[5]


def test_gradient_entries_are_clipped_before_the_norm(toy_run: Callable[..., Path]) -> None:
    norms = {}
    for name, changes in {"free": (), "entries": ("optimization.clip_grad_value=1e-4",)}.items():
        history = split_of(toy_run("optimization.clip_grad_norm=1e9", *changes, name=name)).history()
        norms[name] = history[0]["train/grad_norm"]
    assert norms["entries"] <= 1e-4 * math.sqrt(67) < norms["free"]


def test_the_section_says_norm_and_accumulation(toy_run: Callable[..., Path]) -> None:
    def first_epoch(name: str, *changes: str) -> dict[str, Any]:
        return dict(split_of(toy_run("optimization.clip_grad_norm=1e9", *changes, name=name)).history()[0])

    plain, pairs = first_epoch("plain"), first_epoch("pairs", "optimization.accumulation_steps=2")
    assert pairs["step"] == -(-plain["step"] // 2) < plain["step"]
    largest = first_epoch("largest", "optimization.clip_norm_type=inf")
    assert largest["train/grad_norm"] < 0.9 * plain["train/grad_norm"]


def test_the_norm_is_the_same_with_and_without_amp(toy_run: Callable[..., Path]) -> None:
    norms = [
        split_of(toy_run("optimization.clip_grad_norm=0.01", f"computational.amp={amp}", name=amp)).history()[0]
        for amp in ("no", "bf16")
    ]
    assert norms[0]["train/grad_norm"] == pytest.approx(norms[1]["train/grad_norm"], rel=0.02)


def test_a_budget_of_steps_ends_within_an_epoch_and_can_be_raised(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]
) -> None:
    changes = ("optimization.num_epochs=3", "toy_plugin.dropout=0.3")
    whole = trainer("whole", *changes).train().maps
    run = trainer("run", *changes, "optimization.max_steps=4").train().maps
    split = split_of(run)
    assert [record["step"] for record in split.history()] == [3, 4]
    assert "validation/fit" in split.history()[1]
    assert (split.status()["status"], split.status()["reason"]) == ("completed", "optimization.max_steps = 4 done")
    text = (run / "split-0" / "history.jsonl").read_text()
    Trainer.from_maps(run).resume()
    assert (run / "split-0" / "history.jsonl").read_text() == text
    Trainer.from_maps(run, assignments=["optimization.max_steps=100"]).resume()
    assert outcome(run) == outcome(whole)


def test_a_budget_of_seconds(toy_run: Callable[..., Path]) -> None:
    run = toy_run("optimization.num_epochs=500", "optimization.max_seconds=0.3", "toy_plugin.wait=0.01")
    status = split_of(run).status()
    assert status["reason"] == "optimization.max_seconds = 0.3 spent" and 1 < status["step"] < 100


def test_steps_that_are_not_finite_may_be_left_out(trainer: Callable[..., Trainer]) -> None:
    changes = ("toy_plugin.nan_from=3", "data.batch_size=4", "optimization.nonfinite=skip")
    net = Net()
    history = split_of(trainer("run", *changes, model=net).train().maps).history()
    assert [record["train/skipped_steps"] for record in history] == [1, 1]
    assert all(math.isfinite(record["train/loss"]) for record in history)
    assert all(bool(tensor.isfinite().all()) for tensor in net.state_dict().values())
    with pytest.raises(DivergedError, match="1 steps in a row were left out"):
        trainer("strict", *changes, "optimization.max_skipped=0").train()


def test_evaluations_within_an_epoch(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    changes = ("data.batch_size=4", "optimization.evaluation_every_n_steps=2", "toy_plugin.dropout=0.3")
    whole = trainer("whole", *changes).train().maps
    history = split_of(whole).history()
    assert [[part["step"] for part in record["evaluations"]] for record in history] == [[2, 4], [8, 10]]
    assert history[0]["evaluations"][0]["validation/fit"] != history[0]["validation/fit"]

    class Leave:
        @hookimpl
        def on_step_end(self, run: Any) -> None:
            if run.step == 9:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted):
        trainer("cut", *changes, callbacks=[Leave()]).train()
    Trainer.from_maps(whole.parent / "cut", callbacks=[]).resume()
    assert outcome(whole.parent / "cut") == outcome(whole)
    plain = trainer("plain", changes[0], changes[2]).train().maps
    assert outcome(plain)["last"] == outcome(whole)["last"]


class Pair(nn.Module):
    """A tiny GAN on the toy's vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Linear(4, 3)
        self.discriminator = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        fake = self.generator(batch["features"])
        return {"logits": fake, "fake": self.discriminator(fake), "real": self.discriminator(batch["target"])}


def adversarial(outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    entropy = nn.functional.softplus
    return {
        "generator": entropy(-outputs["fake"]).mean(),
        "discriminator": (entropy(outputs["fake"]) + entropy(-outputs["real"])).mean(),
    }


class Gan:
    def __init__(self, generator: float = 0.1, discriminator: float = 0.1) -> None:
        self.rates = {"generator": generator, "discriminator": discriminator}

    @hookimpl
    def build_model(self) -> nn.Module:
        return Pair()

    @hookimpl
    def build_loss(self) -> Any:
        return adversarial

    @hookimpl
    def build_optimizer(self, model: Pair) -> dict[str, torch.optim.Optimizer]:
        return {name: torch.optim.Adam(getattr(model, name).parameters(), lr=rate) for name, rate in self.rates.items()}


@pytest.mark.parametrize("moving", ["generator", "discriminator"])
def test_each_optimizer_moves_only_its_own(trainer: Callable[..., Trainer], moving: str) -> None:
    rates = {"generator": 0.0, "discriminator": 0.0, moving: 0.1}
    run = trainer("run", callbacks=[Gan(**rates)])
    torch.manual_seed(0)
    result = run.train()
    still = trainer("still", callbacks=[Gan(0.0, 0.0)]).train()
    from safetensors.torch import load_file

    one, other = (load_file(r.maps / "split-0" / "last" / "model.safetensors") for r in (result, still))
    assert {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])} == {moving}


def test_gradients_are_those_of_each_ones_own_loss() -> None:
    torch.manual_seed(0)
    net = Pair()
    optimizers = Optimizers(Gan().build_optimizer(net))
    batch = {"features": torch.randn(5, 4), "target": torch.rand(5, 3)}
    optimizers.backward(adversarial(net(batch), batch))
    for name in ("generator", "discriminator"):
        parameters = list(getattr(net, name).parameters())
        wanted = torch.autograd.grad(adversarial(net(batch), batch)[name], parameters)
        assert all(torch.equal(p.grad, g) for p, g in zip(parameters, wanted, strict=True))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'critic' drives no optimizer"):
        optimizers.owner("critic")
    with pytest.raises(ConfigError, match="share a parameter"):
        Optimizers({name: torch.optim.SGD(net.parameters(), lr=0.1) for name in ("a", "b")})


@pytest.mark.parametrize("changes", [(), ("optimization.accumulation_steps=2", "scheduler.name=cosine")])
def test_several_optimizers_resume_exactly(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], changes: tuple[str, ...]
) -> None:
    changes = (*changes, "data.batch_size=4", "checkpoint.every_n_steps=2", "optimization.clip_grad_norm=0.5")
    run = trainer("run", *changes, callbacks=[Gan()]).train().maps
    before = outcome(run)
    record = split_of(run).history()[-1]
    assert {"train/loss_generator", "learning_rate_generator", "train/grad_norm"} <= record.keys()
    Trainer.from_maps(run, callbacks=[Gan()]).resume(checkpoint="step-00000002")
    assert outcome(run) == before


def test_devices_and_backends(toy_run: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="should be 'auto'"):
        ComputationalSection(device="gpu")
    with pytest.raises(ValueError, match="benchmark chooses algorithms by their speed"):
        ComputationalSection(deterministic=True, benchmark=True)
    for device in ("cuda:7", "mps"):
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            with pytest.raises(ConfigError, match=f"'{device}' was asked for"):
                join(device)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    toy_run("computational.benchmark=true", f"computational.allow_tf32={str(not before[1]).lower()}", name="a")
    assert torch.backends.cudnn.benchmark and torch.backends.cuda.matmul.allow_tf32 is not before[1]
    toy_run(name="b")
    assert not torch.backends.cudnn.benchmark
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_times_and_memory_of_an_epoch(toy_run: Callable[..., Path]) -> None:
    run = toy_run("toy_plugin.wait=0.01")
    timing = json.loads((run / "split-0" / "timing.jsonl").read_text().splitlines()[0])
    assert timing["training_seconds"] > 0.03 > timing["waiting_seconds"] > 0
    assert 50e6 < timing["peak_rss_bytes"] < 50e9 and timing["evaluation_seconds"] > 0


def test_a_schedule_for_each_optimizer(trainer: Callable[..., Trainer]) -> None:
    class Halving(Gan):
        @hookimpl
        def build_scheduler(self, optimizer: Optimizers) -> dict[str, Any]:
            return {"generator": torch.optim.lr_scheduler.ExponentialLR(optimizer["generator"], 0.5)}

    history = split_of(trainer("run", callbacks=[Halving()]).train().maps).history()
    assert [record["learning_rate_generator"] for record in history] == [0.1, 0.05]
    assert [record["learning_rate_discriminator"] for record in history] == [0.1, 0.1]
