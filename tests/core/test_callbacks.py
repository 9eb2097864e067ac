"""Callbacks: early stopping, which checkpoints are kept, schedules, plain objects with hook methods, pausing."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from medtrain import (
    EarlyStoppingCallback,
    LRSchedulerCallback,
    ModelCheckpointCallback,
    Run,
    Trainer,
    TrainingCheckpointCallback,
    Undefined,
    hookimpl,
)
from medtrain.errors import ConfigError, PluginError, Preempted
from medtrain.plugins import Plugins
from medtrain.protocols.ranking import CheckpointId, RankedValue, Ranking
from medtrain.rundir.checkpoint import read_manifest
from medtrain.rundir.directory import Maps, SplitFolder
from medtrain.rundir.retention import CheckpointRetention
from toy_plugin import Fit


class Scripted(Fit):
    """Two metrics that follow a script, one value per evaluation."""

    names = ("up", "down")

    def __init__(self, up: list[float], down: list[float] | None = None) -> None:
        self.up, self.down, self.at = up, down or up, 0

    def compute(self, rows: dict[str, Any]) -> dict[str, float]:
        self.at += 1
        return {"up": self.up[self.at - 1], "down": self.down[self.at - 1]}


class At:
    """Sets the script to the epoch under way, so that it goes on where a resumed run does."""

    def __init__(self, metric: Scripted, stop_at: int = -1) -> None:
        self.metric, self.stop_at = metric, stop_at

    def on_epoch_start(self, run: Run) -> None:
        self.metric.at = run.epoch

    def on_step_end(self, run: Run) -> None:
        if run.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


NINE = ("optimization.num_epochs=9", "data.batch_size=12")


def split_of(path: Path) -> SplitFolder:
    return Maps.open(path).split(0)


@pytest.mark.parametrize(
    ("callbacks", "epochs"),
    [
        ([{"metric": "up", "patience": 2}], 4),
        ([{"metric": "up", "patience": 3}], 5),
        ([{"metric": "up", "patience": 2, "min_delta": 0.25}], 3),
        ([{"metric": "down", "patience": 2}], 6),
        ([{"metric": ["up", "down"], "patience": 2}], 6),
        ([{"metric": ["up", "down"], "patience": 2, "when": "any"}], 4),
        ([{"metric": ["up", "down"], "patience": [5, 2]}], 7),
        ([{"metric": "up", "patience": 2}, {"metric": "down", "patience": 2}], 4),
        ([{"metric": "down", "patience": 2}, {"metric": "up", "patience": 2}], 4),
        ([{"metric": "up", "patience": 2, "mode": "min"}], 3),
        ([{"metric": "up", "patience": 8, "upper_bound": 0.7}], 2),
        ([{"metric": "up", "patience": 8, "lower_bound": 0.45}], 4),
        ([{"metric": "down", "patience": None}], 9),
    ],
)
def test_when_a_run_stops(trainer: Callable[..., Trainer], callbacks: list[dict[str, Any]], epochs: int) -> None:
    script = Scripted([0.5, 0.7, 0.6, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3])
    made = trainer("run", *NINE, metrics=[script], callbacks=[EarlyStoppingCallback(**given) for given in callbacks])
    assert made.train().epochs == epochs


def test_values_that_are_not_finite(trainer: Callable[..., Trainer]) -> None:
    values = [0.5, math.nan, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9]
    watch = EarlyStoppingCallback("up")
    run = trainer("nan", *NINE, metrics=[Scripted(values)], callbacks=[watch]).train()
    assert run.epochs == 2
    assert split_of(run.maps).status()["reason"] == "up is nan"
    borne = EarlyStoppingCallback("up", check_finite=False)
    assert trainer("borne", *NINE, metrics=[Scripted(values)], callbacks=[borne]).train().epochs == 9
    undefined = [0.5, Undefined("no label is known"), *values[2:]]
    assert trainer("undefined", *NINE, metrics=[Scripted(undefined)], callbacks=[watch]).train().epochs == 9


def test_the_section_and_the_callback_are_one(trainer: Callable[..., Trainer]) -> None:
    script = [0.5, 0.7, 0.6, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5]
    changes = ('early_stopping.monitor=["up", "down"]', "early_stopping.patience=2", "early_stopping.when=any")
    run = trainer("run", *NINE, *changes, metrics=[Scripted(script)]).train()
    assert (run.epochs, split_of(run.maps).status()["reason"]) == (
        4,
        "up has not improved for 2 evaluations; down has not improved for 2 evaluations",
    )
    bound = ("early_stopping.upper_bound=0.7",)
    stopped = trainer("bound", *NINE, *bound, metrics=[Scripted(script)]).train()
    assert (stopped.epochs, split_of(stopped.maps).status()["reason"]) == (2, "up reached its upper bound 0.7")


@pytest.mark.parametrize(
    ("section", "epochs"),
    [
        (("patience=2",), 4),
        (("patience=2", "min_delta=0.25"), 3),
        (("patience=2", "mode=min"), 3),
        (("lower_bound=0.45",), 4),
        (('monitor=["up", "down"]', "patience=2"), 6),
        (('monitor=["up", "down"]', "patience=2", "when=any"), 4),
    ],
)
def test_each_key_of_the_section_counts(trainer: Callable[..., Trainer], section: tuple[str, ...], epochs: int) -> None:
    script = Scripted([0.5, 0.7, 0.6, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5], [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.3, 0.3, 0.3])
    changes = [f"early_stopping.{change}" for change in section]
    assert trainer("run", *NINE, *changes, metrics=[script]).train().epochs == epochs


@pytest.mark.parametrize(("check", "epochs"), [("true", 2), ("false", 9)])
def test_the_section_bears_values_that_are_not_finite(trainer: Callable[..., Trainer], check: str, epochs: int) -> None:
    changes = ("early_stopping.patience=8", f"early_stopping.check_finite={check}")
    script = Scripted([0.5, math.nan, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9, 0.9])
    assert trainer("run", *NINE, *changes, metrics=[script]).train().epochs == epochs


@pytest.mark.parametrize("by", ["callback", "section"])
def test_early_stopping_goes_on_counting_after_a_resume(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], by: str
) -> None:
    script = [0.5, 0.7, 0.6, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5]
    watch = [EarlyStoppingCallback("up", patience=4)] if by == "callback" else []
    changes = (*NINE, *(["early_stopping.patience=4", "early_stopping.monitor=up"] if by == "section" else []))
    whole = trainer("whole", *changes, metrics=[Scripted(script)], callbacks=[At(Scripted(script)), *watch]).train()
    assert whole.epochs == 6
    metric = Scripted(script)
    with pytest.raises(Preempted):
        trainer("cut", *changes, metrics=[metric], callbacks=[At(metric, stop_at=7), *watch]).train()
    metric = Scripted(script)
    again = [EarlyStoppingCallback("up", patience=4)] if by == "callback" else []
    resumed = Trainer.from_maps(whole.maps.parent / "cut", metrics=[metric], callbacks=[At(metric), *again]).resume()
    assert resumed.epochs == 6
    assert outcome(resumed.maps) == outcome(whole.maps)


def test_what_early_stopping_refuses(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no value 'fti' \(did you mean 'fit'\?\); known: loss, fit"):
        trainer("run", callbacks=[EarlyStoppingCallback("fti")]).train()
    assert not (tmp_path / "run").exists()
    for given, message in {
        "when": "when is 'all' or 'any', not 'most'",
        "patience": "patience has 2 entries for 1 metrics",
        "mode": "mode is 'auto', 'min' or 'max', not 'best'",
    }.items():
        value: Any = {"when": "most", "patience": [1, 2], "mode": "best"}[given]
        with pytest.raises(ConfigError, match=message):
            EarlyStoppingCallback(metric="fit", **{given: value})


def test_one_callback_serves_one_run_after_another(trainer: Callable[..., Trainer]) -> None:
    watch = EarlyStoppingCallback("up", patience=2)
    for name in ("first", "second"):
        script = Scripted([0.5, 0.7, 0.6, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5])
        assert trainer(name, *NINE, metrics=[script], callbacks=[watch]).train().epochs == 4


def test_directions_are_known_before_the_run_starts(trainer: Callable[..., Trainer]) -> None:
    seen: list[dict[str, str]] = []

    class Look:
        def on_run_start(self, run: Run) -> None:
            seen.append(dict(run.modes))

    trainer("run", "optimization.num_epochs=1", callbacks=[Look()]).train()
    assert seen == [{"loss": "min", "fit": "max"}]


def kept(folder: SplitFolder) -> dict[str, int]:
    """Checkpoint -> the number of epochs its model has seen."""
    return {path.name: read_manifest(path)["epoch"] for path in folder.checkpoints()}


def test_which_models_are_kept(trainer: Callable[..., Trainer]) -> None:
    script = Scripted([0.5, 0.7, math.nan, 0.8, 0.8, 0.6], [0.3, 0.1, 0.2, 0.4, 0.5, 0.6])
    script.names = ("up", "down")
    wanted = ModelCheckpointCallback(metric=["up", "loss"], epochs=[1, 3], top_k=3)
    changes = ("optimization.num_epochs=6", "checkpoint.keep_last_n=1", "checkpoint.every_n_epochs=2")
    run = trainer("run", *changes, metrics=[script], callbacks=[wanted]).train()
    folders = kept(split_of(run.maps))
    ups = {name: epoch for name, epoch in folders.items() if name.startswith("best-up")}
    assert ups == {"best-up": 4, "best-up-2": 5, "best-up-3": 2}
    assert {name for name in folders if name.startswith("best-loss")} == {"best-loss", "best-loss-2", "best-loss-3"}
    assert {name for name in folders if name.startswith("epoch")} == {"epoch-0001", "epoch-0003", "epoch-0006"}
    assert run.best_checkpoint.name == "best-up"
    losses = [record["validation/loss"] for record in split_of(run.maps).history()]
    order = [int(epoch) + 1 for epoch in np.argsort(losses, kind="stable")[:3]]
    assert [folders[name] for name in ("best-loss", "best-loss-2", "best-loss-3")] == order
    again = Trainer.from_maps(run.maps, metrics=[Scripted([0.1] * 9)])
    assert again.config.checkpoint.metrics == ["up", "loss"]
    assert split_of(run.maps).best() == split_of(run.maps).checkpoint("best-up")


def test_a_value_that_does_not_exist_is_refused(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.metrics: there is no value 'f1'"):
        trainer("run", callbacks=[ModelCheckpointCallback("f1")]).train()
    with pytest.raises(ConfigError, match="ModelCheckpointCallback: top_k"):
        trainer("run", callbacks=[ModelCheckpointCallback(top_k=0)])
    assert not (tmp_path / "run").exists()


def test_last_may_go_when_the_run_is_complete(trainer: Callable[..., Trainer]) -> None:
    run = trainer("run", callbacks=[ModelCheckpointCallback(save_last=False)]).train()
    assert set(kept(split_of(run.maps))) == {"best-fit"}
    alone = trainer("alone", "checkpoint.best=false", callbacks=[ModelCheckpointCallback(save_last=False)]).train()
    assert set(kept(split_of(alone.maps))) == {"last"}


def test_the_best_are_the_same_after_a_resume(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], tmp_path: Path
) -> None:
    """Resumed from older checkpoints too: what comes after is forgotten and found again."""
    values = [0.5, 0.7, 0.6, 0.8, 0.55, 0.75]

    def made(name: str, stop_at: int = -1) -> Trainer:
        metric = Scripted(values)
        wanted = ModelCheckpointCallback("loss", epochs=[2, 3], top_k=3)
        return trainer(
            name, "optimization.num_epochs=6", metrics=[metric], callbacks=[At(metric, stop_at=stop_at), wanted]
        )

    whole = made("whole").train().maps
    folders = kept(split_of(whole))
    assert {name: folders[name] for name in ("best-up", "best-up-2", "best-up-3")} == {
        "best-up": 4,
        "best-up-2": 6,
        "best-up-3": 2,
    }
    with pytest.raises(Preempted):
        made("cut", stop_at=13).train()
    for checkpoint in ("last", "epoch-0003", "epoch-0002"):
        metric = Scripted(values)
        Trainer.from_maps(tmp_path / "cut", metrics=[metric], callbacks=[At(metric)]).resume(checkpoint=checkpoint)
        assert kept(split_of(tmp_path / "cut")) == folders
        assert outcome(tmp_path / "cut") == outcome(whole)


def test_the_training_checkpoint_callback(trainer: Callable[..., Trainer]) -> None:
    saved: list[tuple[int, int]] = []

    class Note:
        def on_checkpoint(self, run: Run) -> None:
            saved.append((run.epoch, run.step))

    def run(name: str, *callbacks: Any) -> list[tuple[int, int]]:
        saved.clear()
        changes = ("optimization.num_epochs=4", "checkpoint.best=false")
        trainer(name, *changes, callbacks=[*callbacks, Note()]).train()
        return list(saved)

    assert run("each") == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert run("second", TrainingCheckpointCallback(every_n_epochs=2)) == [(2, 6), (4, 12)]
    assert run("steps", TrainingCheckpointCallback(0, every_n_steps=5)) == [(1, 5), (3, 10), (4, 12)]
    assert run("off", TrainingCheckpointCallback(enabled=False)) == [(4, 12)]


def test_a_ranking_keeps_its_order() -> None:
    ranking = Ranking("min", 2)
    values = [3.0, math.nan, 3.0, 4.0, 1.0, math.inf]
    taken = [ranking.update(value, epoch, CheckpointId(epoch + 1, 5 * epoch)) for epoch, value in enumerate(values)]
    assert taken == [True, False, True, False, True, False]
    assert ranking.entries == [(1.0, 4, (5, 20)), (3.0, 0, (1, 0))]
    other = Ranking("min", 2)
    other.load_state_dict(json.loads(json.dumps(ranking.state_dict())))
    assert other.entries == ranking.entries and (other.best, other.epoch, other.step) == (1.0, 4, 20)


def test_folders_are_put_in_order_after_a_crash(toy_run: Callable[..., Path], config: Callable[..., Any]) -> None:
    """Killed at any point of moving folders, the next arrangement ends the same."""
    run = toy_run("checkpoint.every_n_epochs=1", "optimization.num_epochs=3", "checkpoint.best=false")
    folder = split_of(run)
    from medtrain.rundir import checkpoint

    retention = CheckpointRetention(config("checkpoint.top_k=2").checkpoint, folder, {"fit": "max"})
    retention.rankings["fit"].entries = [
        RankedValue(0.9, 2, CheckpointId(3, 9)),
        RankedValue(0.8, 0, CheckpointId(1, 3)),
    ]
    for before in ([], ["epoch-0001", "epoch-0002"], ["epoch-0001", "epoch-0001"], ["epoch-0002"], ["epoch-0003"]):
        for name in retention.best_names("fit"):
            checkpoint.remove(folder.checkpoint(name))
        for name, source in zip(retention.best_names("fit"), before, strict=False):
            checkpoint.link(folder.checkpoint(source), folder.checkpoint(name))
        retention.arrange()
        assert {name: kept(folder)[name] for name in ("best-fit", "best-fit-2")} == {"best-fit": 3, "best-fit-2": 1}


def rates(path: Path) -> list[float]:
    return [record["learning_rate"] for record in split_of(path).history()]


THREE = ("optimization.num_epochs=3", "optimization.learning_rate=0.1")


def test_schedulers_by_name_class_and_function(trainer: Callable[..., Trainer]) -> None:
    exponential = torch.optim.lr_scheduler.ExponentialLR
    for number, callback in enumerate(
        [
            LRSchedulerCallback("ExponentialLR", gamma=0.5),
            LRSchedulerCallback(exponential, gamma=0.5),
            LRSchedulerCallback(lambda optimizer: exponential(optimizer, 0.5)),
        ]
    ):
        path = trainer(f"run-{number}", *THREE, callbacks=[callback]).train().maps
        assert rates(path) == pytest.approx([0.1, 0.05, 0.025])
    stepwise = LRSchedulerCallback("ExponentialLR", interval="step", gamma=0.5)
    path = trainer("step", *THREE, callbacks=[stepwise]).train().maps
    assert rates(path) == pytest.approx([0.1 * 0.5**steps for steps in (2, 5, 8)])
    cosine = trainer("cosine", *THREE, callbacks=[LRSchedulerCallback("CosineAnnealingLR")]).train().maps
    assert rates(cosine) == pytest.approx([0.1, 0.075, 0.025])
    cycle = trainer("cycle", *THREE, callbacks=[LRSchedulerCallback("OneCycleLR", max_lr=0.1)]).train().maps
    assert rates(cycle)[0] > rates(cycle)[1] > rates(cycle)[2]


def test_the_plateau_of_a_metric_of_ones_own(trainer: Callable[..., Trainer]) -> None:
    """`down` falls all the time; as a metric whose larger values are better it has a plateau, the loss has none."""
    changes = ("optimization.num_epochs=4", "optimization.learning_rate=0.001")
    script = [0.4, 0.3, 0.2, 0.1]
    found = {}
    for metric in ("down", "loss"):
        callback = LRSchedulerCallback("ReduceLROnPlateau", metric=metric, factor=0.5, patience=0)
        made = trainer(metric, *changes, metrics=[Scripted([0.1] * 4, script)], callbacks=[callback])
        found[metric] = rates(made.train().maps)
    assert found["down"] == pytest.approx([0.001, 0.0005, 0.00025, 0.000125]) or found["down"] == pytest.approx(
        [0.001, 0.001, 0.0005, 0.00025]
    )
    assert found["loss"] == pytest.approx([0.001] * 4)
    with pytest.raises(ConfigError, match="LRSchedulerCallback: there is no value 'auc'"):
        trainer("none", callbacks=[LRSchedulerCallback("ReduceLROnPlateau", metric="auc")]).train()


def test_a_scheduler_of_a_callback_resumes(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    class Stops:
        def on_step_end(self, run: Run) -> None:
            if run.step == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    made = [LRSchedulerCallback("ReduceLROnPlateau", metric="loss", patience=0, threshold=1.0, factor=0.5)]
    whole = trainer("whole", *THREE, callbacks=made).train().maps
    assert len(set(rates(whole))) > 1
    with pytest.raises(Preempted):
        trainer("cut", *THREE, callbacks=[*made, Stops()]).train()
    resumed = Trainer.from_maps(whole.parent / "cut")
    resumed.resume()
    assert outcome(whole.parent / "cut") == outcome(whole)


def test_what_the_scheduler_callback_refuses(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(ConfigError, match=r"has no 'StpLR' \(did you mean 'StepLR'\?\)"):
        LRSchedulerCallback("StpLR")
    for callback, message in {
        LRSchedulerCallback("StepLR", step_size=1, gama=0.1): r"no option 'gama' \(did you mean 'gamma'\?\)",
        LRSchedulerCallback("StepLR"): "step_size",
        LRSchedulerCallback("StepLR", step_size=1, metric="loss"): "StepLR follows no metric",
        LRSchedulerCallback("StepLR", "critic", step_size=1): "there is no optimizer 'critic'.*there are: optimizer",
        LRSchedulerCallback(lambda optimizer: None): "gave no scheduler but NoneType",
    }.items():
        with pytest.raises(ConfigError, match=message):
            trainer("run", callbacks=[callback]).train()
    two = [LRSchedulerCallback("StepLR", step_size=1), LRSchedulerCallback("StepLR", step_size=2)]
    with pytest.raises(ConfigError, match="two LRSchedulerCallbacks"):
        trainer("run", callbacks=two).train()


class Plain:
    """Hook methods without a mark."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def on_epoch_end(self, run: Run) -> None:
        self.epochs.append(run.epoch)


def test_plain_methods_are_hooks_and_two_of_a_class_are_two(trainer: Callable[..., Trainer]) -> None:
    one, two = Plain(), Plain()
    made = trainer("run", callbacks=[one, two])
    assert made.plugins.names[-2:] == ["Plain", "Plain-2"]
    made.train()
    assert one.epochs == two.epochs == [0, 1]


def test_misspelt_hooks_of_plain_objects_are_refused() -> None:
    class Slip:
        def on_epoch_ends(self, run: Run) -> None: ...

        @hookimpl
        def on_run_start(self, run: Run) -> None: ...

    with pytest.raises(PluginError, match=r"no hook 'on_epoch_ends' \(did you mean 'on_epoch_end'\?\)"):
        Plugins.of([Slip()])

    class Useless:
        pass

    with pytest.raises(PluginError, match="implements no hook"):
        Plugins.of([Useless()])


def test_a_run_pauses_and_goes_on(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medtrain.training.interruptions.PAUSE_SECONDS", 0.02)
    changes = ("optimization.num_epochs=3", "data.batch_size=4", "data.num_workers=2", "toy_plugin.dropout=0.3")
    whole = trainer("whole", *changes).train().maps
    steps: list[tuple[int, float]] = []

    class Asks:
        def on_step_end(self, run: Run) -> None:
            steps.append((run.step, time.monotonic()))
            assert run.maps is not None
            if run.step == 8:
                run.maps.pause()
                threading.Timer(0.5, release, [run.maps]).start()
                time.sleep(0.03)

    def release(folder: SplitFolder) -> None:
        seen.append(folder.status()["status"])
        folder.pause(False)

    seen: list[str] = []
    run = trainer("run", *changes, callbacks=[Asks()]).train().maps
    assert seen == ["paused"]
    assert split_of(run).status()["status"] == "completed"
    assert [step for step, _ in steps] == list(range(1, 19))
    at = dict(steps)
    assert at[9] - at[8] > 0.4
    assert outcome(run) == outcome(whole)


def test_a_paused_run_obeys_signals(trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medtrain.training.interruptions.PAUSE_SECONDS", 0.02)

    class Asks:
        def on_step_end(self, run: Run) -> None:
            assert run.maps is not None
            if run.step == 2:
                run.maps.pause()
                threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
                time.sleep(0.03)

    made = trainer("run", callbacks=[Asks()])
    with pytest.raises(Preempted, match="checkpoint written at step 2"):
        made.train()
    # Whoever resumes wants it to go on.
    assert Trainer.from_maps(made.path).resume().epochs == 2  # type: ignore[arg-type]


@pytest.mark.acceptance
def test_pausing_from_the_command_line(medtrain: Any, wait_for: Any, tmp_path: Path) -> None:
    changes = ("optimization.num_epochs=40", "toy_plugin.wait=0.05", "computational.device=cpu", "data.batch_size=2")
    arguments = [part for change in changes for part in ("--set", change)]
    process = medtrain.start("run", "--plugin", "toy_plugin", *arguments, "--out", "run", "--quiet", "--nproc", 2)
    folder = SplitFolder(tmp_path / "run" / "split-0")
    wait_for(lambda: folder.history())
    assert "split 0 pauses at its next step" in medtrain("runs", "pause", "run").stdout
    wait_for(lambda: folder.status()["status"] == "paused")
    steps = len(folder.history())
    assert "nothing here is running: split 0 is paused" in medtrain("runs", "pause", "run", code=2).stderr
    assert len(folder.history()) == steps
    medtrain("runs", "continue", "run", "--split", 0)
    wait_for(lambda: len(folder.history()) > steps)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert "there is no split 3" in medtrain("runs", "pause", "run", "--split", 3, code=2).stderr
