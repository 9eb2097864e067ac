"""Transfer: what is taken from a file, what rests and for how long, and its own learning rate."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Run, TensorModel, Trainer, hookimpl
from medtrain.errors import CheckpointError, ConfigError, Preempted
from medtrain.rundir.directory import Maps
from safetensors.torch import load_file, save_file
from torch import nn


class Net(nn.Module):
    """An encoder with statistics and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.encoder(x))
        return logits


class Builds:
    """Builds the net, and watches its encoder."""

    def __init__(self, *stop_at: int) -> None:
        self.stop_at = stop_at
        self.encoders: list[dict[str, torch.Tensor]] = []
        self.training: list[bool] = []
        self.groups: list[int] = []

    @hookimpl
    def build_model(self) -> nn.Module:
        return TensorModel(Net(), input="features")

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        encoder = run.model.get_submodule("encoder")
        self.encoders.append({name: value.clone() for name, value in encoder.state_dict().items()})
        self.training.append(any(module.training for module in encoder.modules()))
        assert run.optimizer is not None
        self.groups.append(sum(len(group["params"]) for group in run.optimizer.param_groups))
        if run.step in self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A file with the encoder's weights, and a head of another size."""
    torch.manual_seed(5)
    state = Net().state_dict()
    state["head.weight"], state["head.bias"] = torch.zeros(7, 8), torch.zeros(7)
    state["decoder.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "pretrained.safetensors")
    return tmp_path / "pretrained.safetensors"


def weights(path: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(path / "split-0" / name / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def encoder_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}


EPOCHS = ("optimization.num_epochs=3", "optimization.learning_rate=0.05")  # 3 steps each


def test_frozen_parts_rest_and_are_thawed(trainer: Callable[..., Trainer], pretrained: Path) -> None:
    builds = Builds()
    changes = (f"transfer.checkpoint={pretrained}", 'transfer.freeze=["encoder.*"]', "transfer.freeze_epochs=2")
    run = trainer("run", *EPOCHS, *changes, callbacks=[builds]).train().maps
    given = encoder_of(load_file(pretrained))
    assert all(same(state, given) for state in builds.encoders[:6]), "weights and statistics rest"
    assert not any(same(state, given) for state in builds.encoders[6:])
    assert not torch.equal(builds.encoders[8]["0.weight"], builds.encoders[6]["0.weight"])
    assert builds.training == [False] * 6 + [True] * 3
    assert builds.groups == [2] * 6 + [6] * 3
    log = (run / "split-0" / "log.txt").read_text()
    assert "7 tensors loaded, 0 missing, 2 of other shape, 1 unused" in log


def test_frozen_for_good(trainer: Callable[..., Trainer], pretrained: Path) -> None:
    changes = (f"transfer.checkpoint={pretrained}", 'transfer.freeze=["encoder.*"]')
    run = trainer("run", *EPOCHS, *changes, callbacks=[Builds()]).train().maps
    assert same(encoder_of(weights(run)), encoder_of(load_file(pretrained)))
    free = trainer("free", *EPOCHS, *changes[:1], callbacks=[Builds()]).train().maps
    assert not same(encoder_of(weights(free)), encoder_of(load_file(pretrained)))


@pytest.mark.parametrize("stops", [(2,), (6,), (7,), (4, 8)])
def test_a_run_resumes_frozen_or_thawed(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], pretrained: Path, stops: tuple[int, ...]
) -> None:
    """Without the file, which has served its purpose."""
    changes = (
        *EPOCHS,
        f"transfer.checkpoint={pretrained}",
        'transfer.freeze=["encoder.*"]',
        "transfer.freeze_epochs=2",
        "transfer.lr_scale=0.1",
        'transfer.include=["encoder.*"]',
        "scheduler.name=cosine",
    )
    whole = trainer("whole", *changes, callbacks=[Builds()]).train().maps
    made = trainer("cut", *changes, callbacks=[Builds(stops[0])])
    with pytest.raises(Preempted):
        made.train()
    pretrained.unlink()
    for stop in stops[1:]:
        with pytest.raises(Preempted):
            Trainer.from_maps(made.path, callbacks=[Builds(stop)]).resume()  # type: ignore[arg-type]
    Trainer.from_maps(made.path, callbacks=[Builds()]).resume()  # type: ignore[arg-type]
    assert outcome(made.path) == outcome(whole)  # type: ignore[arg-type]


def test_the_state_of_the_others_is_kept_when_the_encoder_is_thawed(trainer: Callable[..., Trainer]) -> None:
    steps: dict[int, list[float]] = {}

    class Looks(Builds):
        @hookimpl
        def on_epoch_start(self, run: Run) -> None:
            assert run.optimizer is not None
            head = dict(run.model.named_parameters())["head.weight"]
            steps[run.epoch] = [float(run.optimizer.state[head].get("step", 0)), len(run.optimizer.state)]

    changes = ('transfer.freeze=["encoder.*"]', "transfer.freeze_epochs=1")
    trainer("run", *EPOCHS, *changes, callbacks=[Looks()]).train()
    assert steps[1] == [3.0, 2] and steps[2] == [6.0, 6]


def test_what_is_taken(trainer: Callable[..., Trainer], pretrained: Path) -> None:
    given = load_file(pretrained)
    fresh = weights(trainer("fresh", "optimization.num_epochs=1", "optimization.learning_rate=1e-30",
                            "optimization.weight_decay=0", callbacks=[Builds()]).train().maps)  # fmt: skip
    tiny = ("optimization.num_epochs=1", "optimization.learning_rate=1e-30", "optimization.weight_decay=0")
    for name, include, exclude, taken in (
        ("all", '["*"]', "[]", {"encoder.0.weight", "encoder.1.weight", "encoder.0.bias"}),
        ("some", '["encoder.0.*"]', "[]", {"encoder.0.weight", "encoder.0.bias"}),
        ("but", '["*"]', '["*.bias"]', {"encoder.0.weight", "encoder.1.weight"}),
    ):
        changes = (
            f"transfer.checkpoint={pretrained}",
            f"transfer.include={include}",
            f"transfer.exclude={exclude}",
        )
        found = weights(trainer(name, *tiny, *changes, callbacks=[Builds()]).train().maps)
        for key in ("encoder.0.weight", "encoder.0.bias"):
            assert torch.equal(found[key], given[key] if key in taken else fresh[key]), (name, key)


def test_transferred_parts_learn_at_their_own_rate(trainer: Callable[..., Trainer], pretrained: Path) -> None:
    found: dict[str, float] = {}

    class Looks(Builds):
        @hookimpl
        def on_run_start(self, run: Run) -> None:
            assert run.optimizer is not None
            names = {id(parameter): name for name, parameter in run.model.named_parameters()}
            for group in run.optimizer.param_groups:
                found.update({names[id(parameter)]: group["lr"] for parameter in group["params"]})

    changes = (f"transfer.checkpoint={pretrained}", "transfer.lr_scale=0.1", 'transfer.include=["encoder.*"]')
    trainer("run", *EPOCHS, *changes, callbacks=[Looks()]).train()
    assert {name: rate for name, rate in found.items() if name.startswith("head")} == pytest.approx(
        {"head.weight": 0.05, "head.bias": 0.05}
    )
    assert found["encoder.0.weight"] == pytest.approx(0.005)
    assert len(found) == 6


def test_a_run_as_the_source(trainer: Callable[..., Trainer]) -> None:
    source = trainer("source", *EPOCHS, callbacks=[Builds()]).train()
    changes = (f"transfer.checkpoint={source.maps}", 'transfer.freeze=["encoder.*"]')
    run = trainer("run", *EPOCHS, *changes, callbacks=[Builds()]).train().maps
    assert same(encoder_of(weights(run)), encoder_of(weights(source.maps, source.best_checkpoint.name)))


def test_what_cannot_be_transferred(trainer: Callable[..., Trainer], pretrained: Path, tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    found = f"transfer.checkpoint={pretrained}"
    for changes, message in {
        (f"transfer.checkpoint={tmp_path / 'none.pt'}",): "there is no file or run",
        (f"transfer.checkpoint={tmp_path / 'other.safetensors'}",): "nothing in it fits the model",
        (found, 'transfer.include=["backbone.*"]'): "nothing in it fits the model",
        ('transfer.freeze=["backbone.*"]',): "no parameter of the model is called 'backbone",
        ('transfer.freeze=["*"]',): "no trainable parameter is left",
        ("transfer.freeze_epochs=3",): "nothing is frozen",
        ("transfer.lr_scale=0.1",): "nothing is transferred",
    }.items():
        with pytest.raises((ConfigError, CheckpointError), match=message):
            trainer("run", *changes, callbacks=[Builds()]).train()
        assert not (tmp_path / "run").exists()


@pytest.mark.acceptance
def test_two_processes_equal_one(medtrain: Any, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """Thawing makes a new DDP: the encoder's gradients are averaged over processes from then on."""
    changes = (
        "computational.device=cpu",
        "optimization.num_epochs=3",
        'transfer.freeze=["0.*"]',
        "transfer.freeze_epochs=1",
    )
    arguments = [part for change in (*changes, "data.batch_size=4") for part in ("--set", change)]
    (tmp_path / "pair").mkdir()
    witness = ("--set", f"toy_plugin.witness={tmp_path / 'pair'}")
    medtrain("run", "--plugin", "toy_plugin", *arguments, *witness, "--out", "two", "--nproc", 2, "--quiet")
    assert (tmp_path / "pair" / "end-0").read_text() == (tmp_path / "pair" / "end-1").read_text()
    whole = trainer("one", *changes, "data.batch_size=8").train().maps
    for name, value in weights(whole).items():
        assert torch.allclose(value, weights(tmp_path / "two")[name], atol=1e-6), name
    here, there = (Maps.open(path).split(0).history() for path in (tmp_path / "two", whole))
    for record, wanted in zip(here, there, strict=True):
        assert record == pytest.approx(wanted, abs=1e-6)
