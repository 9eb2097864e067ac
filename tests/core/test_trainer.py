"""The Trainer: training, exact resume, early ends, failing plugins, evaluation; all on the toy plugin."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import medtrain
import pytest
import torch
from medtrain import Data, Evaluation, Run, TensorModel, Trainer, hookimpl
from medtrain.config import OptimizationSection
from medtrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HookError,
    Interrupted,
    PluginError,
    Preempted,
    UsageError,
)
from medtrain.rundir.directory import Maps
from safetensors.torch import load_file, save_file
from torch import nn
from toy_plugin import Fit, MaskedLoss, Vectors

THREE = ("optimization.num_epochs=3", "data.batch_size=4")  # 6 steps per epoch
RANDOM = (*THREE, "toy_plugin.dropout=0.3", "toy_plugin.noise=0.1", "toy_plugin.shift=0.1")
VARIANTS = {
    "plain": (),
    "workers": ("data.num_workers=2",),
    "ema": ("optimization.ema_decay=0.8",),
    "plateau": (
        "scheduler.name=plateau",
        "scheduler.patience=0",
        "scheduler.warmup_steps=4",
        "optimization.learning_rate=1",
    ),
    "cosine": ("scheduler.name=cosine", "scheduler.warmup_steps=4", "optimization.clip_grad_norm=0.5"),
    "accumulation": ("optimization.accumulation_steps=2", "data.batch_size=2"),
    "undefined": ("toy_plugin.undefined=true", "checkpoint.every_n_steps=5"),
}


class Interrupter:
    """Sends this process a signal at the given steps."""

    def __init__(self, *steps: int, number: int = signal.SIGTERM) -> None:
        self.steps, self.number = steps, number

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        if run.step in self.steps:
            os.kill(os.getpid(), self.number)


class Raiser:
    """Raises in one hook at one epoch, once."""

    def __init__(self, hook: str, epoch: int = 1, step: int | None = None) -> None:
        self.hook, self.epoch, self.step = hook, epoch, step
        self.seen: list[BaseException | None] = []

    def _raise(self, hook: str, run: Run) -> None:
        if hook == self.hook and run.epoch == self.epoch and self.step in (None, run.step):
            self.hook = ""
            raise ValueError("the tracker is away")

    @hookimpl
    def on_run_start(self, run: Run) -> None:
        self._raise("on_run_start", run)

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        self._raise("on_epoch_start", run)

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        self._raise("on_step_end", run)

    @hookimpl
    def on_evaluate_end(self, run: Run) -> None:
        self._raise("on_evaluate_end", run)

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        self._raise("on_epoch_end", run)

    @hookimpl
    def on_checkpoint(self, run: Run) -> None:
        self._raise("on_checkpoint", run)

    @hookimpl
    def on_run_end(self, run: Run) -> None:
        self._raise("on_run_end", run)

    @hookimpl
    def on_exception(self, run: Run) -> None:
        self.seen.append(run.exception)
        raise RuntimeError("and this one too")


def split_of(run: Path) -> Any:
    return Maps.open(run).split(0)


def log_of(run: Path) -> str:
    return (run / "split-0" / "log.txt").read_text()


def test_a_run_and_what_it_says(trainer: Callable[..., Trainer]) -> None:
    result = trainer("run", "optimization.num_epochs=3").train()
    history = split_of(result.maps).history()
    assert [record["epoch"] for record in history] == [0, 1, 2]
    assert [record["step"] for record in history] == [3, 6, 9]
    assert set(history[0]) == {
        "epoch",
        "step",
        "learning_rate",
        "train/loss",
        "train/loss_risk",
        "train/loss_size",
        "validation/loss",
        "validation/loss_risk",
        "validation/loss_size",
        "validation/fit",
    }
    assert history[2]["train/loss"] < history[0]["train/loss"]
    best = max(history, key=lambda record: record["validation/fit"])
    assert result.best_metric == {"name": "fit", "value": best["validation/fit"], "epoch": best["epoch"]}
    assert (result.epochs, result.split) == (3, 0)
    assert result.best_checkpoint.name == "best-fit"
    assert result.metrics == history[-1]
    status = split_of(result.maps).status()
    assert (status["status"], status["reason"]) == ("completed", "all epochs done")
    assert split_of(result.maps).membership()["about"] == {"source": "made up"}
    timing = [json.loads(line) for line in (result.maps / "split-0" / "timing.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in timing] == [0, 1, 2]


def test_the_same_seed_gives_the_same_run(toy_run: Callable[..., Path], outcome: Callable[[Path], Any]) -> None:
    one = outcome(toy_run(*RANDOM, name="one"))
    torch.manual_seed(123)
    assert outcome(toy_run(*RANDOM, name="two")) == one
    assert outcome(toy_run(*RANDOM, "run.seed=1", name="three"))["last"] != one["last"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], variant: str
) -> None:
    """Left in the middle of the first and of the second epoch, by SIGTERM and by Ctrl-C."""
    changes = [*RANDOM, *VARIANTS[variant]]
    whole = trainer("whole", *changes).train().maps
    made = trainer("cut", *changes, callbacks=[Interrupter(4)])
    with pytest.raises(Preempted, match="checkpoint written at step 4; go on with `medtrain resume"):
        made.train()
    path = made.path
    assert path is not None
    assert split_of(path).status()["status"] == "preempted"
    assert split_of(path).history() == []
    with pytest.raises(Interrupted, match="checkpoint written at step 9"):
        Trainer.from_maps(path, callbacks=[Interrupter(9, number=signal.SIGINT)]).resume()
    assert split_of(path).status()["status"] == "interrupted"
    Trainer.from_maps(path).resume()
    assert outcome(path) == outcome(whole)
    if variant == "plateau":
        rates = [record["learning_rate"] for record in split_of(whole).history()]
        assert len(set(rates)) > 1, "the plateau was never reached: the test would prove nothing"


def test_without_the_position_a_resume_would_differ(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]
) -> None:
    """The control: a checkpoint that forgot where in the epoch it was gives other weights."""
    whole = trainer("whole", *RANDOM).train().maps
    made = trainer("cut", *RANDOM, callbacks=[Interrupter(4)])
    with pytest.raises(Preempted):
        made.train()
    manifest = made.path / "split-0" / "last" / "checkpoint.json"  # type: ignore[operator]
    manifest.write_text(manifest.read_text().replace('"steps_into_epoch": 4', '"steps_into_epoch": 0'))
    resumed = Trainer.from_maps(made.path).resume()  # type: ignore[arg-type]
    assert outcome(resumed.maps)["last"] != outcome(whole)["last"]


@pytest.mark.parametrize("name", ["epoch-0001", "epoch-0002", "step-00000008", "best-fit", "last"])
def test_resume_from_any_checkpoint(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], name: str) -> None:
    """What was recorded after it is forgotten, and written again the same."""
    made = trainer("run", *RANDOM, "checkpoint.every_n_epochs=1", "checkpoint.every_n_steps=4")
    run = made.train().maps
    before, names = outcome(run), [path.name for path in split_of(run).checkpoints()]
    assert {"epoch-0003", "step-00000016"} <= set(names)
    Trainer.from_maps(run).resume(checkpoint=run / "split-0" / name)
    assert outcome(run) == before
    assert [path.name for path in split_of(run).checkpoints()] == names


def test_a_signal_during_evaluation(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    class Slow(Fit):
        calls = 0

        def rows(self, outputs: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 4:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().rows(outputs, batch)

    whole = trainer("whole", *RANDOM).train().maps
    with pytest.raises(Preempted, match="checkpoint written at step 12"):
        trainer("cut", *RANDOM, metrics=[Slow()]).train()
    with pytest.raises(UsageError, match=r"an object that is not recorded .*Slow.*; give metrics="):
        Trainer.from_maps(whole.parent / "cut")
    Trainer.from_maps(whole.parent / "cut", metrics=[Fit()]).resume()
    assert outcome(whole.parent / "cut") == outcome(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], name: str
) -> None:
    made = trainer("run", *RANDOM, callbacks=[Interrupter(15)])
    with pytest.raises(Preempted):
        made.train()
    run = made.path
    assert run is not None
    path = run / "split-0" / "last" / name
    path.write_bytes(path.read_bytes()[:-1])
    Trainer.from_maps(run).resume()
    assert f"damaged checkpoint passed over: {run / 'split-0' / 'last'}: damaged: {name}" in log_of(run)
    assert "resumed at epoch 2, step 12" in log_of(run)
    assert outcome(run) == outcome(trainer("whole", *RANDOM).train().maps)


def test_more_epochs_than_planned(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    short = trainer("short", *RANDOM).train().maps
    result = Trainer.from_maps(short, assignments=["optimization.num_epochs=4"]).resume()
    assert result.epochs == 4
    longer = trainer("long", *RANDOM, "optimization.num_epochs=4").train().maps
    assert outcome(short) == outcome(longer)


def test_resume_of_a_finished_run_changes_nothing(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]
) -> None:
    made = trainer("run")
    run = made.train().maps
    before = outcome(run)
    assert made.resume().epochs == 2
    assert outcome(run) == before


def test_early_stopping_stops_and_says_why(trainer: Callable[..., Trainer]) -> None:
    changes = ("optimization.num_epochs=9", "early_stopping.patience=2", "early_stopping.min_delta=10")
    run = trainer("run", *changes).train()
    assert run.epochs == 3
    assert split_of(run.maps).status()["reason"] == "fit has not improved for 2 evaluations"
    assert Trainer.from_maps(run.maps).resume().epochs == 3


def test_early_stopping_of_another_value_and_mode(trainer: Callable[..., Trainer]) -> None:
    changes = ("early_stopping.patience=1", "early_stopping.monitor=loss", "early_stopping.mode=max")
    run = trainer("run", "optimization.num_epochs=9", *changes).train()
    assert run.epochs == 2
    assert split_of(run.maps).status()["reason"] == "loss has not improved for 1 evaluations"


def test_a_plugin_may_end_the_run(trainer: Callable[..., Trainer]) -> None:
    class Enough:
        @hookimpl
        def on_step_end(self, run: Run) -> None:
            if run.step == 2:
                run.request_stop("seen enough")

    result = trainer("run", "optimization.num_epochs=5", callbacks=[Enough()]).train()
    assert result.epochs == 1
    assert len(split_of(result.maps).history()) == 1
    assert split_of(result.maps).status()["reason"] == "seen enough"


@pytest.mark.parametrize(
    ("hook", "epoch", "step", "at"),
    [
        ("on_epoch_end", 1, None, 12),
        ("on_step_end", 1, 8, 8),
        ("on_evaluate_end", 1, None, 12),
        ("on_epoch_start", 1, None, 6),
        ("on_checkpoint", 2, None, 12),
        ("on_run_end", 3, None, 18),
    ],
)
def test_a_failing_plugin_leaves_a_checkpoint(
    trainer: Callable[..., Trainer], outcome: Callable[[Path], Any], hook: str, epoch: int, step: int | None, at: int
) -> None:
    raiser = Raiser(hook, epoch, step)
    made = trainer("run", *RANDOM, callbacks=[raiser])
    with pytest.raises(HookError, match=f"hook {hook} failed: ValueError: the tracker is away"):
        made.train()
    run = made.path
    assert run is not None
    manifest = json.loads((run / "split-0" / "last" / "checkpoint.json").read_text())
    assert manifest["step"] == at
    status = split_of(run).status()
    assert status["status"] == "failed" and hook in status["reason"]
    assert [type(error) for error in raiser.seen] == [HookError]
    assert "on_exception failed: RuntimeError: and this one too" in log_of(run)
    Trainer.from_maps(run, callbacks=[]).resume()
    assert outcome(run) == outcome(trainer("whole", *RANDOM).train().maps)


def test_a_plugin_that_fails_before_the_first_step(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    with pytest.raises(HookError, match="on_run_start"):
        trainer("run", callbacks=[Raiser("on_run_start", 0)]).train()
    assert split_of(tmp_path / "run").checkpoints() == []


def test_what_medtrain_raises_in_a_hook_passes_unchanged(trainer: Callable[..., Trainer]) -> None:
    class Strict:
        @hookimpl
        def on_epoch_end(self, run: Run) -> None:
            raise DataError("row 7 is impossible")

    with pytest.raises(DataError, match="row 7"):
        trainer("run", callbacks=[Strict()]).train()


def test_lifecycle_in_order(trainer: Callable[..., Trainer]) -> None:
    said: list[str] = []

    class Diary:
        @hookimpl
        def on_run_start(self, run: Run) -> None:
            said.append("run")

        @hookimpl
        def on_epoch_start(self, run: Run) -> None:
            said.append(f"epoch {run.epoch}")

        @hookimpl
        def on_step_end(self, run: Run) -> None:
            said.append(f"step {run.step} {run.progress['done']}")

        @hookimpl
        def on_evaluate_end(self, run: Run) -> None:
            assert run.evaluation is not None
            said.append(f"{run.evaluation.group}")

        @hookimpl
        def on_epoch_end(self, run: Run) -> None:
            said.append(f"end {run.epoch} {run.metrics['epoch']}")

        @hookimpl
        def on_checkpoint(self, run: Run) -> None:
            assert run.checkpoint is not None and run.checkpoint.is_dir()
            said.append(f"saved {run.checkpoint.name}")

        @hookimpl
        def on_run_end(self, run: Run) -> None:
            said.append("done")

    trainer("run", "data.batch_size=12", callbacks=[Diary()]).train()
    assert said == [
        "run",
        "epoch 0",
        "step 1 1",
        "step 2 2",
        "validation",
        "end 0 0",
        "saved last",
        "epoch 1",
        "step 3 1",
        "step 4 2",
        "validation",
        "end 1 1",
        "saved last",
        "done",
    ]


class Stages:
    """Twice the data from the second epoch on, for a plugin that wants a curriculum."""

    def __init__(self) -> None:
        self.large = False
        self.seen: list[int] = []

    @hookimpl
    def build_data(self) -> Data:
        return Data(train=Vectors(0, 46 if self.large else 23), validation=Vectors(500, 9))

    @hookimpl
    def on_epoch_start(self, run: Run) -> None:
        if run.epoch >= 1:
            self.large = True
            run.rebuild_data()

    @hookimpl
    def on_epoch_end(self, run: Run) -> None:
        assert run.data is not None and run.data.train is not None
        self.seen.append(len(run.data.train))


def test_data_may_be_rebuilt(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    stages = Stages()
    whole = trainer("whole", *THREE, callbacks=[stages]).train().maps
    assert [record["step"] for record in split_of(whole).history()] == [6, 18, 30]
    assert stages.seen == [23, 46, 46]
    with pytest.raises(Preempted):
        trainer("cut", *THREE, callbacks=[Stages(), Interrupter(11)]).train()
    Trainer.from_maps(whole.parent / "cut", callbacks=[Stages()]).resume()
    assert outcome(whole.parent / "cut") == outcome(whole)


class Scheduler:
    def __init__(self, answer: Callable[[torch.optim.Optimizer], Any]) -> None:
        self.answer = answer

    @hookimpl
    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return self.answer(optimizer)


def test_no_scheduler_at_all(trainer: Callable[..., Trainer]) -> None:
    changes = (*THREE, "scheduler.name=cosine", "scheduler.warmup_steps=3")
    rates = {}
    for name, callbacks in {"none": [Scheduler(lambda optimizer: medtrain.NONE)], "default": []}.items():
        run = trainer(name, *changes, callbacks=callbacks).train().maps
        rates[name] = [record["learning_rate"] for record in split_of(run).history()]
    assert rates["none"] == [0.001] * 3
    assert len(set(rates["default"])) == 3


def test_a_torch_scheduler_of_a_plugin_resumes(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    def halving() -> Scheduler:
        return Scheduler(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))

    whole = trainer("whole", *THREE, callbacks=[halving()]).train().maps
    assert [r["learning_rate"] for r in split_of(whole).history()] == [0.001, 0.0005, 0.00025]
    with pytest.raises(Preempted):
        trainer("cut", *THREE, callbacks=[halving(), Interrupter(8)]).train()
    Trainer.from_maps(whole.parent / "cut", callbacks=[halving()]).resume()
    assert outcome(whole.parent / "cut") == outcome(whole)


def test_plugins_keep_state_of_their_own(trainer: Callable[..., Trainer]) -> None:
    class Counter:
        def __init__(self) -> None:
            self.steps = 0

        @hookimpl
        def on_step_end(self, run: Run) -> None:
            self.steps += 1

        def state_dict(self) -> dict[str, Any]:
            return {"steps": self.steps}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.steps = state["steps"]

    with pytest.raises(Preempted):
        trainer("run", *THREE, callbacks=[Counter(), Interrupter(8)]).train()
    counter = Counter()
    Trainer.from_maps(trainer("run").path, callbacks=[counter]).resume()  # type: ignore[arg-type]
    assert counter.steps == 18


def test_objects_instead_of_plugins(tmp_path: Path) -> None:
    net = nn.Linear(4, 3)
    made = Trainer(
        tmp_path / "run",
        TensorModel(net, input="features"),
        [Fit()],
        OptimizationSection(num_epochs=1, learning_rate=0.5),
        loss=MaskedLoss(),
    )
    data = Data(train=Vectors(0, 12), validation=Vectors(50, 6), test=Vectors(80, 4))
    result = made.train(data)
    assert result.best_metric["name"] == "fit"
    assert torch.equal(load_file(result.maps / "split-0" / "last" / "model.safetensors")["weight"], net.weight)
    again = made.evaluate("validation", split=data, checkpoint="last")
    assert again.metrics["fit"] == result.metrics["validation/fit"]
    new = Data(test=Vectors(90, 4))
    assert math.isfinite(made.evaluate("test", split=new).metrics["fit"])
    with pytest.raises(DataError, match="12 participants of these data were used to fit this model"):
        made.evaluate("all", split=Data(test=Vectors(0, 12)))


def test_a_model_without_a_loss(tmp_path: Path) -> None:
    made = Trainer(tmp_path / "run", TensorModel(nn.Linear(4, 3), input="features"))
    with pytest.raises(PluginError, match="answers build_loss"):
        made.train(Data(train=Vectors(0, 12)))
    with pytest.raises(PluginError, match="has data"):
        made.train()
    assert not (tmp_path / "run").exists()


def test_evaluate(trainer: Callable[..., Trainer]) -> None:
    made = trainer("run")
    history = split_of(made.train().maps).history()
    found = made.evaluate("validation", checkpoint="last")
    assert found.metrics == {
        key.removeprefix("validation/"): value for key, value in history[-1].items() if key.startswith("validation/")
    }
    assert found.details == {"counted": 9, "seed": 0}
    best = Trainer.from_maps(made.path).evaluate("validation", details=False)  # type: ignore[arg-type]
    assert best.metrics["fit"] == max(record["validation/fit"] for record in history)
    assert best.details == {}
    assert made.evaluate().rows["sample_id"].tolist() == [f"sample-{800 + i}" for i in range(5)]
    with pytest.raises(DataError, match="there is no group 'tset' in these data; groups: train, validation, test"):
        made.evaluate("tset")
    with pytest.raises(DataError, match="its samples have changed"):
        Trainer.from_maps(made.path, assignments=["toy_plugin.test=6"]).evaluate()  # type: ignore[arg-type]


def test_a_report_of_the_last_evaluation(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    made = trainer("run", "toy_plugin.undefined=true")
    with pytest.raises(UsageError, match="nothing has been evaluated yet"):
        made.report()
    made.train()
    found = made.evaluate("test")
    folder = made.report()
    assert folder == tmp_path / "run" / "split-0" / "evaluation-test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["metrics"]["fit"] is None
    assert metrics["undefined"] == {"fit": "no label is known"}
    assert metrics["metrics"]["loss"] == found.metrics["loss"]
    lines = (folder / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("sample_id,logits_1,logits_2,logits_3,target_1")
    assert len(lines) == 6
    page = (folder / "report.html").read_text()
    assert "no label is known" in page and "data:image/png;base64" in page
    assert "http://" not in page and "https://" not in page
    assert (folder / "plots" / "training.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        made.report(tmp_path / "file" / "x")


def test_a_plugin_evaluates_itself(trainer: Callable[..., Trainer]) -> None:
    class Own:
        @hookimpl
        def evaluate(self, run: Run, loader: Any) -> Evaluation:
            counted = sum(len(batch["sample_id"]) for batch in loader)
            return Evaluation("validation", {"fit": float(counted)}, {"sample_id": []})

    run = trainer("run", callbacks=[Own()]).train()
    assert run.best_metric["value"] == 9.0
    assert set(split_of(run.maps).history()[0]) >= {"validation/fit", "train/loss"}

    class Poor:
        @hookimpl
        def evaluate(self, run: Run, loader: Any) -> Evaluation:
            return Evaluation("validation", {"froc": 1.0})

    with pytest.raises(ConfigError, match="the validation group has no value 'fit'; known: froc"):
        trainer("poor", callbacks=[Poor()]).train()


def test_predict(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    made = trainer("run")
    made.train()
    (tmp_path / "vectors.txt").write_text("1,2,3,4\n0,0,0,0\n")
    table = made.predict(tmp_path / "vectors.txt", checkpoint="last")
    assert table.shape == (2, 3)
    net = medtrain.build_model("toy_plugin", weights=tmp_path / "run" / "split-0" / "last" / "model.safetensors")
    wanted = net.eval()(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert table.iloc[0].tolist() == pytest.approx(wanted[0].tolist(), rel=1e-5)


def test_a_task_that_cannot_predict(tmp_path: Path) -> None:
    made = Trainer(tmp_path / "run", plugins=["medtrain.testing:ToyTask"])
    made.train()
    with pytest.raises(PluginError, match=r"medtrain\.testing:ToyTask can predict \(hook predict\)"):
        made.predict("x")


def test_models_and_their_weights(tmp_path: Path) -> None:
    one, two = (medtrain.build_model("toy_plugin", dropout=0.5) for _ in range(2))
    assert isinstance(one, nn.Module)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    torch.save({"model": {f"module.{k}": v for k, v in one.state_dict().items()}}, tmp_path / "old.pth")
    loaded = medtrain.build_model("toy_plugin", weights=tmp_path / "old.pth")
    assert torch.equal(next(loaded.parameters()), next(one.parameters()))
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="the weights do not fit this model: Missing key"):
        medtrain.build_model("toy_plugin", weights=tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="there is no such weights file"):
        medtrain.build_model("toy_plugin", weights=tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match=r"droput: unknown key \(did you mean 'dropout'"):
        medtrain.build_model("toy_plugin", droput=0.5)


def test_pickled_weights_run_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(ConfigError, match="not a plain state dict"):
        medtrain.build_model("toy_plugin", weights=tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_run_is_never_written_over(trainer: Callable[..., Trainer], outcome: Callable[[Path], Any]) -> None:
    run = trainer("run").train().maps
    before = outcome(run)
    with pytest.raises(UsageError, match="the folder already holds a run"):
        trainer("run").train()
    assert outcome(run) == before


def test_what_cannot_be_resumed(trainer: Callable[..., Trainer]) -> None:
    with pytest.raises(UsageError, match="not a run directory"):
        trainer("never").resume()
    with pytest.raises(CheckpointError, match="has not trained yet"):
        Trainer(plugins=["toy_plugin"]).resume()
    made = trainer("run", *THREE, callbacks=[Interrupter(4)])
    with pytest.raises(Preempted):
        made.train()
    run = made.path
    assert run is not None
    with pytest.raises(CheckpointError, match="there is no checkpoint 'epoch-9'; there are: last"):
        Trainer.from_maps(run).resume(checkpoint="epoch-9")
    with pytest.raises(CheckpointError, match=r"the middle of an epoch of 4 samples per step, this run\s+has 8"):
        Trainer.from_maps(run, assignments=["data.batch_size=8"]).resume()
    with pytest.raises(CheckpointError, match="the groups have other members now"):
        Trainer.from_maps(run, assignments=["toy_plugin.samples=24"]).resume()
    with pytest.raises(CheckpointError, match="checkpoint: the weights do not fit this model"):
        Trainer.from_maps(run, model=TensorModel(nn.Linear(4, 3), input="features")).resume()


def test_faults_are_found_before_anything_is_written(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    faults = {
        "validation.monitor=c_index": "there is no value 'c_index'; known: loss, fit",
        "early_stopping.monitor=auc": "there is no value 'auc'",
        "computational.device=cuda": "torch sees no GPU",
        'optimization.groups=[{pattern="encoder.*"}]': "no parameter of the model is called",
        "toy_plugin.test=0": "group 'test' is empty",
    }
    for assignment, message in faults.items():
        if "cuda" in assignment and torch.cuda.is_available():
            continue
        with pytest.raises((ConfigError, DataError), match=message):
            trainer("run", assignment).train()
        assert not (tmp_path / "run").exists()


def test_periodic_checkpoints_are_pruned(toy_run: Callable[..., Path]) -> None:
    changes = ("checkpoint.every_n_steps=4", "checkpoint.every_n_epochs=1", "checkpoint.keep_last_n=2")
    run = toy_run(*THREE, *changes)
    names = {path.name for path in split_of(run).checkpoints()}
    assert names == {"last", "best-fit", "epoch-0002", "epoch-0003", "step-00000012", "step-00000016"}


def test_last_may_be_written_at_the_end_only(toy_run: Callable[..., Path]) -> None:
    saved: list[int] = []

    class Note:
        @hookimpl
        def on_checkpoint(self, run: Run) -> None:
            saved.append(run.step)

    run = toy_run(*THREE, "checkpoint.last_every_n_epochs=0", "checkpoint.best=false", callbacks=[Note()])
    assert saved == [18]
    assert [path.name for path in split_of(run).checkpoints()] == ["last"]


@pytest.mark.parametrize(("interval", "evaluated"), [(0, []), (2, [1, 2])])
def test_evaluation_interval(toy_run: Callable[..., Path], interval: int, evaluated: list[int]) -> None:
    run = toy_run("optimization.num_epochs=3", f"optimization.evaluation_interval={interval}")
    history = split_of(run).history()
    assert [record["epoch"] for record in history if "validation/fit" in record] == evaluated


def test_undefined_metrics_are_null_with_a_reason(trainer: Callable[..., Trainer]) -> None:
    run = trainer("run", "toy_plugin.undefined=true").train()
    record = split_of(run.maps).history()[0]
    assert record["validation/fit"] is None
    assert record["undefined"] == {"validation/fit": "no label is known"}
    assert run.best_metric == {"name": "fit", "value": None, "epoch": None}
    assert run.best_checkpoint.name == "last"


def test_a_dry_run_writes_nothing(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    facts = trainer("run").dry_run()
    assert facts["samples"] == {"train": 23, "validation": 9, "test": 5}
    assert facts["parameters"] == facts["trainable_parameters"] == 67
    assert (facts["epochs"], facts["steps_per_epoch"], facts["monitor"]) == (2, 3, "fit (max)")
    assert list(tmp_path.iterdir()) == []


def test_volumes_train_in_either_memory_format(tmp_path: Path) -> None:
    losses = []
    for name in ("contiguous", "channels_last"):
        made = Trainer(tmp_path / name, plugins=["medtrain.testing:ToyTask"])
        made.config.computational.memory_format = name  # type: ignore[assignment]
        made.config.optimization.num_epochs = 2
        losses.append(made.train().metrics["train/loss"])
        Trainer.from_maps(tmp_path / name).resume()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_default_run_directory(config: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = Trainer(config=config("run.name=trial", "optimization.num_epochs=1")).train()
    assert result.maps.parent == Path("runs")
    assert result.maps.name.endswith("-toy_plugin-trial")
    assert Maps.open(result.maps).index()["plugins"] == [
        {"name": "toy_plugin", "distribution": "toy-plugin", "version": "1.0"}
    ]
