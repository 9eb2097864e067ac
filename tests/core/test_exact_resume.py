"""Left in the middle of epochs and resumed, a run is the run that was never left: any schedule, any stopping place."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain import Data, LRSchedulerCallback, Run, RunConfig, Trainer, hookimpl
from medtrain.errors import DataError, DivergedError, Preempted
from medtrain.rundir.directory import Maps, SplitFolder
from toy_plugin import Fit, Vectors

# 6 steps per epoch.
TASK = ("optimization.num_epochs=3", "data.batch_size=4", "toy_plugin.dropout=0.3", "toy_plugin.noise=0.1")
SCHEDULES = {
    "none": ("scheduler.warmup_steps=9",),
    "plateau": ("scheduler.patience=0", "optimization.learning_rate=1", "scheduler.warmup_steps=5"),
    "cosine": ("scheduler.warmup_steps=5",),
    "linear": ("scheduler.interval=epoch",),
    "polynomial": ("scheduler.power=2", "scheduler.warmup_epochs=1"),
    "step": ("scheduler.step_size=4", "scheduler.interval=step"),
    "multistep": ("scheduler.milestones=[1, 2]", "scheduler.warmup_steps=5"),
    "exponential": (),
    "onecycle": ("scheduler.warmup_steps=5",),
    "CosineAnnealingWarmRestarts": ("scheduler.options={T_0=5}", "scheduler.interval=step"),
    "CyclicLR": ("scheduler.options={base_lr=1e-4, max_lr=1e-2, step_size_up=4, cycle_momentum=false}",),
    "ReduceLROnPlateau": ("scheduler.options={patience=0}", "optimization.learning_rate=1"),
    "PolynomialLR": ("scheduler.options={total_iters=2, power=2.0}", "scheduler.warmup_steps=5"),
}


class Leaves:
    """Asks the run to leave at a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, run: Run) -> None:
        if run.step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def split_of(path: Path, number: int = 0) -> SplitFolder:
    return Maps.open(path).split(number)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], name: str) -> None:
    changes = (*TASK, f"scheduler.name={name}", *SCHEDULES[name])
    whole = trainer("whole", *changes).train().maps
    made = trainer("cut", *changes, callbacks=[Leaves(4)])
    with pytest.raises(Preempted):
        made.train()
    with pytest.raises(Preempted):
        Trainer.from_maps(whole.parent / "cut", callbacks=[Leaves(10)]).resume()
    Trainer.from_maps(whole.parent / "cut", callbacks=[]).resume()
    assert outcome(whole.parent / "cut") == outcome(whole)
    rates = [record["learning_rate"] for record in split_of(whole).history()]
    assert len(set(rates)) > 1, "the rate never moved: the test would prove nothing"


@pytest.mark.parametrize("step", [1, 6, 7, 17])
def test_wherever_it_is_left(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], step: int) -> None:
    """After the first step, at the end of an epoch, in the last epoch; with a schedule given as a callback."""
    changes = (*TASK, "optimization.clip_grad_norm=0.5", "optimization.ema_decay=0.8")

    def schedule() -> LRSchedulerCallback:
        return LRSchedulerCallback("ExponentialLR", interval="step", gamma=0.9)

    whole = trainer("whole", *changes, callbacks=[schedule()]).train().maps
    with pytest.raises(Preempted):
        trainer("cut", *changes, callbacks=[schedule(), Leaves(step)]).train()
    Trainer.from_maps(whole.parent / "cut", callbacks=[schedule()]).resume()
    assert outcome(whole.parent / "cut") == outcome(whole)


class Broken(Vectors):
    """Every sample from number 8 on has features that are no numbers."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        return {**sample, "features": sample["features"] * (torch.nan if index >= 8 else 1.0)}


class BrokenData:
    @hookimpl
    def build_data(self) -> Data:
        return Data(train=Broken(0, 23), validation=Vectors(500, 9))


def test_skipped_steps_are_counted_across_a_resume(trainer: Callable[..., Trainer]) -> None:
    """Steps 3 to 6 are not finite. Left after the fourth, the resumed run still knows that two were left out."""
    changes = (*TASK[:2], "data.sampling=sequential", "optimization.nonfinite=skip", "optimization.max_skipped=3")
    made = trainer("run", *changes, callbacks=[BrokenData(), Leaves(4)])
    with pytest.raises(Preempted):
        made.train()
    with pytest.raises(DivergedError, match=r"4 steps in a row were left out .* up to step 6"):
        Trainer.from_maps(made.path, callbacks=[BrokenData()]).resume()  # type: ignore[arg-type]


class Scripted(Fit):
    """A value per evaluation."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def compute(self, rows: dict[str, Any]) -> dict[str, float]:
        return {"fit": self.values.pop(0)}


BY_STEP = ("optimization.evaluation_every_n_steps=2", "data.batch_size=4", "toy_plugin.dropout=0.3")


def manifests(folder: SplitFolder) -> dict[str, tuple[int, int, int]]:
    found = {}
    for path in folder.checkpoints():
        facts = json.loads((path / "checkpoint.json").read_text())
        found[path.name] = (facts["epoch"], facts["step"], facts["steps_into_epoch"])
    return found


def test_an_evaluation_within_an_epoch_may_be_the_best(trainer: Callable[..., Trainer]) -> None:
    metric = Scripted(0.1, 0.9, 0.5, 0.2, 0.3, 0.7)  # after steps 2, 4, 6 (an epoch's end), 8, 10, 12
    result = trainer("run", *BY_STEP, "checkpoint.top_k=3", metrics=[metric]).train()
    folder = split_of(result.maps)
    kept = {"best-fit": (0, 4, 4), "best-fit-2": (2, 12, 0), "best-fit-3": (1, 6, 0), "last": (2, 12, 0)}
    assert manifests(folder) == kept
    assert result.best_checkpoint.name == "best-fit"
    assert folder.status()["best"] == {"name": "fit", "value": 0.9, "epoch": 0, "step": 4}


@pytest.mark.parametrize("leave", [3, 4, 8, 11])
def test_the_best_within_epochs_are_the_same_after_a_resume(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], leave: int
) -> None:
    """Between evaluations (3, 11) and with one due at the step where it is left (4, 8)."""
    changes = (*BY_STEP, "checkpoint.top_k=4")
    whole = trainer("whole", *changes).train().maps
    assert any(into for _, _, into in manifests(split_of(whole)).values()), "none lies within an epoch"
    with pytest.raises(Preempted):
        trainer("cut", *changes, callbacks=[Leaves(leave)]).train()
    cut = whole.parent / "cut"
    Trainer.from_maps(cut, callbacks=[]).resume()
    assert outcome(cut) == outcome(whole)
    assert manifests(split_of(cut)) == manifests(split_of(whole))
    # And from one of the best themselves.
    name = next(name for name, (_, _, into) in manifests(split_of(cut)).items() if into)
    last = {key: value for key, value in outcome(cut).items() if key.startswith("last")}
    Trainer.from_maps(cut, callbacks=[]).resume(checkpoint=name)
    assert {key: outcome(cut)[key] for key in last if key != "last state"} == {
        key: value for key, value in last.items() if key != "last state"
    }


class Whole:
    """One dataset for folds; a stage shows its training samples with more noise, or other samples."""

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        stage = config.stage
        settings = stage.filter if stage else {}
        return Data(whole=Vectors(settings.get("first", 0), 24, noise=settings.get("noise", 0.0)))


def test_stages_within_folds(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    stages = "stages=[{epochs=1, batch_size=3}, {epochs=1, batch_size=5, filter={noise=0.2}, learning_rate_scale=0.5}]"
    changes = (stages, "data.num_folds=3", "data.test_fraction=0.2", "toy_plugin.dropout=0.3")
    whole = trainer("whole", *changes, callbacks=[Whole()])
    for fold in (0, 2):
        whole.train(fold)
    assert whole.path is not None
    folders = [split_of(whole.path, fold) for fold in (0, 2)]
    held = [set(folder.membership()["groups"]["validation"]["samples"]) for folder in folders]
    assert not held[0] & held[1]
    sizes = [len(folder.membership()["groups"]["train"]["samples"]) for folder in folders]
    for folder, size in zip(folders, sizes, strict=True):
        first = -(-size // 3)
        assert [record["step"] for record in folder.history()] == [first, first - (-size // 5)]
        assert [record["learning_rate"] for record in folder.history()] == pytest.approx([1e-3, 5e-4])
    left = -(-sizes[1] // 3) + 1  # in the middle of the second stage
    with pytest.raises(Preempted):
        trainer("cut", *changes, callbacks=[Whole(), Leaves(left)]).train(2)
    Trainer.from_maps(whole.path.parent / "cut", callbacks=[Whole()]).resume(2)
    for name in ("history.jsonl", "last/model.safetensors", "last/state.json", "last/state.safetensors"):
        cut = whole.path.parent / "cut" / "split-2" / name
        assert cut.read_bytes() == (folders[1].path / name).read_bytes(), name


def test_a_stage_may_not_have_folds_of_its_own(trainer: Callable[..., Trainer]) -> None:
    stages = "stages=[{epochs=1}, {epochs=1, filter={first=100}}]"
    with pytest.raises(DataError, match=r"stages\.1: the (test|validation) group has other samples"):
        trainer("run", stages, "data.num_folds=3", callbacks=[Whole()]).train(1)
