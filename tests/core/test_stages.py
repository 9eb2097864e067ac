"""Stages: data, batch size and learning rate that change on the way, and what must not change."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from medtrain import Data, Run, RunConfig, Trainer, hookimpl
from medtrain.config import Layers
from medtrain.errors import ConfigError, DataError, Preempted
from medtrain.rundir.directory import Maps, SplitFolder
from medtrain.testing import ToyVolumes
from toy_plugin import Vectors

STAGES = (
    'stages=[{epochs=1, name="easy", batch_size=4, patch_size=[2, 2], filter={upto=12}}, '
    "{epochs=1, batch_size=6, learning_rate_scale=0.5}, {epochs=1, filter={upto=20}}]"
)
CHANGES = (STAGES, "optimization.num_epochs=4", "toy_plugin.dropout=0.3")


class Curriculum:
    """The toy's data, of which a stage shows the first `upto` training samples."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int]]] = []

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        stage = config.stage
        self.asked.append((config.data.batch_size, stage.patch_size if stage else []))
        upto = stage.filter.get("upto", 23) if stage else 23
        return Data(train=Vectors(0, upto, noise=0.1), validation=Vectors(500, 9), test=Vectors(800, 5))


class Looks:
    """Notes what hooks can see of stages; ends the run at a step."""

    def __init__(self, *stop_at: int) -> None:
        self.stop_at = stop_at
        self.seen: list[tuple[int, int, int, int]] = []

    def on_epoch_start(self, run: Run) -> None:
        assert run.data is not None and run.data.train is not None and run.stage_settings is not None
        size = run.stage_settings.batch_size or run.config.data.batch_size
        self.seen.append((run.epoch, run.stage, len(run.data.train), size))

    def on_step_end(self, run: Run) -> None:
        if run.step in self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def split_of(path: Path) -> SplitFolder:
    return Maps.open(path).split(0)


def test_each_stage_has_its_data_and_batches(trainer: Callable[..., Trainer]) -> None:
    curriculum, looks = Curriculum(), Looks()
    run = trainer("run", *CHANGES, callbacks=[curriculum, looks]).train()
    assert looks.seen == [(0, 0, 12, 4), (1, 1, 23, 6), (2, 2, 20, 8), (3, 2, 20, 8)]
    history = split_of(run.maps).history()
    assert [record["step"] for record in history] == [3, 3 + 4, 3 + 4 + 3, 3 + 4 + 3 + 3]
    assert [record["learning_rate"] for record in history] == pytest.approx([1e-3, 5e-4, 1e-3, 1e-3])
    assert curriculum.asked[0] == (8, []) and (4, [2, 2]) in curriculum.asked
    assert len(split_of(run.maps).membership()["groups"]["train"]["samples"]) == 23
    assert "stage 0 easy from epoch 0" in (run.maps / "split-0" / "log.txt").read_text()


@pytest.mark.parametrize("stops", [(2,), (3, 5), (7, 9), (10,), (12,)])
def test_a_run_resumes_in_the_middle_of_a_stage(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], stops: tuple[int, ...]
) -> None:
    whole = trainer("whole", *CHANGES, "scheduler.name=cosine", callbacks=[Curriculum()]).train().maps
    made = trainer("cut", *CHANGES, "scheduler.name=cosine", callbacks=[Curriculum(), Looks(stops[0])])
    with pytest.raises(Preempted):
        made.train()
    for stop in stops[1:]:
        with pytest.raises(Preempted):
            Trainer.from_maps(made.path, callbacks=[Curriculum(), Looks(stop)]).resume()  # type: ignore[arg-type]
    Trainer.from_maps(made.path, callbacks=[Curriculum()]).resume()  # type: ignore[arg-type]
    assert outcome(made.path) == outcome(whole)  # type: ignore[arg-type]


def test_resume_from_the_end_of_a_stage(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    run = trainer("run", *CHANGES, "checkpoint.every_n_epochs=1", callbacks=[Curriculum()]).train().maps
    before = outcome(run)
    for name in ("epoch-0001", "epoch-0002"):
        Trainer.from_maps(run, callbacks=[Curriculum()]).resume(checkpoint=name)
        assert outcome(run) == before


def test_the_schedule_knows_all_steps(trainer: Callable[..., Trainer]) -> None:
    """13 steps in all: the cosine is back at its floor after the last, and not before."""
    changes = (*CHANGES[1:], STAGES.replace("learning_rate_scale=0.5", 'name="all"'), "scheduler.name=cosine")
    made = trainer("run", *changes, callbacks=[Curriculum()])
    rates: list[float] = []

    class Notes:
        def on_step_end(self, run: Run) -> None:
            assert run.optimizer is not None
            rates.append(run.optimizer.param_groups[0]["lr"])

    made = trainer("run", *changes, callbacks=[Curriculum(), Notes()])
    made.train()
    assert len(rates) == 13
    assert rates[-1] == pytest.approx(0.0, abs=1e-12) and rates[-2] > 1e-6
    assert rates == sorted(rates, reverse=True)


def test_one_stage_that_changes_nothing_is_no_stage(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]
) -> None:
    plain = trainer("plain").train().maps
    staged = trainer("staged", "stages=[{epochs=2}]").train().maps
    assert outcome(staged) == outcome(plain)


def test_data_from_python_change_their_batches_only(tmp_path: Path, trainer: Callable[..., Trainer]) -> None:
    looks = Looks()
    data = Data(train=Vectors(0, 12), validation=Vectors(50, 6))
    stages = "stages=[{epochs=1, batch_size=3}, {epochs=1, batch_size=6}]"
    run = trainer("run", stages, callbacks=[looks]).train(data)
    assert looks.seen == [(0, 0, 12, 3), (1, 1, 12, 6)]
    assert [record["step"] for record in split_of(run.maps).history()] == [4, 6]


class Wrong:
    """Answers with other groups in its second stage."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    @hookimpl
    def build_data(self, config: RunConfig) -> Data:
        stage = config.stage
        wrong = self.fault if stage is not None and stage.name == "second" else ""
        return Data(
            train=Vectors(0, {"strangers": 25, "empty": 0}.get(wrong, 20)),
            validation=Vectors(500, 8 if wrong == "validation" else 9),
        )


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("strangers", r"stages.1 \(second\): its training group has members that are not in the run's"),
        ("validation", r"stages.1 \(second\): the validation group has other samples"),
        ("empty", "group 'train' is empty"),
    ],
)
def test_what_a_stage_may_not_do_shows_before_anything_is_trained(
    trainer: Callable[..., Trainer], tmp_path: Path, fault: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        trainer("run", 'stages=[{epochs=1}, {epochs=1, name="second"}]', callbacks=[Wrong(fault)]).train()
    assert not (tmp_path / "run").exists()


def test_stages_and_epochs_belong_together() -> None:
    def build(**sections: Any) -> RunConfig:
        layers = Layers()
        layers.add(sections, "test")
        return layers.build({})

    stages = [{"epochs": 30, "patch_size": [64, 64, 64]}, {"epochs": 40}]
    assert build(stages=stages).optimization.num_epochs == 70
    longer = build(stages=stages, optimization={"num_epochs": 100})
    assert longer.optimization.num_epochs == 100
    again = Layers()
    again.add(__import__("tomli").loads(longer.to_toml()), "config.toml")
    assert again.build({}) == longer
    with pytest.raises(ConfigError, match=r"the stages have 70 epochs together, optimization\.num_epochs is 10"):
        build(stages=stages, optimization={"num_epochs": 10})
    with pytest.raises(ConfigError, match=r"stages.0.patchsize: unknown key \(did you mean 'patch_size'\?\)"):
        build(stages=[{"epochs": 1, "patchsize": [1]}])


@pytest.mark.acceptance
def test_two_processes_equal_one(medtrain: Any, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    task = ("toy_plugin.samples=17", "optimization.num_epochs=3", "toy_plugin.noise=0.1", "computational.device=cpu")
    halves, wholes = (
        f"stages=[{{epochs=1, batch_size={first}}}, {{epochs=2, batch_size={second}, learning_rate_scale=0.3}}]"
        for first, second in ((2, 4), (4, 8))
    )
    arguments = [part for change in (*task, halves) for part in ("--set", change)]
    medtrain("run", "--plugin", "toy_plugin", *arguments, "--out", "two", "--nproc", 2, "--quiet")
    whole = trainer("one", *task, wholes).train().maps
    here, there = split_of(tmp_path / "two").history(), split_of(whole).history()
    assert [record["step"] for record in here] == [5, 8, 11]
    for record, wanted in zip(here, there, strict=True):
        assert record == pytest.approx(wanted, abs=1e-6)


def test_volumes_are_no_exception(tmp_path: Path) -> None:
    made = Trainer(tmp_path / "run", plugins=["medtrain.testing:ToyTask"])
    made.config.optimization.num_epochs = 2
    made.config.stages = [{"epochs": 1, "batch_size": 2}, {"epochs": 1, "batch_size": 12}]  # type: ignore[list-item]
    made.train()
    train = split_of(tmp_path / "run").membership()["groups"]["train"]["samples"]
    assert set(train) < set(ToyVolumes().sample_ids)
