"""The training of one split, from its first epoch (or a checkpoint) to its last: the story of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medtrain.data.loader import Loader
from medtrain.data.split import Split
from medtrain.errors import ConfigError, HookError, Interrupted, MedtrainError, Preempted
from medtrain.plugins import Plugins
from medtrain.protocols.metric import Evaluation
from medtrain.protocols.model import training_mode
from medtrain.run import Run
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import SplitFolder
from medtrain.rundir.retention import LAST, Keeper, Mark, Ranking, kept
from medtrain.training import state as snapshot
from medtrain.training.budget import Budget
from medtrain.training.engine import Engine
from medtrain.training.evaluation import evaluate
from medtrain.training.interruptions import Interruptions
from medtrain.training.loaders import make_loader, steps_per_epoch
from medtrain.training.monitor import Monitor
from medtrain.training.stages import ScaledSchedule
from medtrain.training.step import StopSignal, check_finite, train_epoch
from medtrain.training.totals import Totals

STATUS_SECONDS = 1.0


class Fit:
    """One split in training. Every process runs the same; only the main one writes."""

    def __init__(
        self, run: Run, engine: Engine, split: Split, plugins: Plugins, folder: SplitFolder, monitor: Monitor
    ) -> None:
        self.run, self.engine, self.split, self.folder = run, engine, split, folder
        self.config, self.world = run.config, engine.world
        self.several = self.world.size > 1
        self.monitor = monitor
        self.keeper = Keeper(self.config.checkpoint, folder, kept(self.config.checkpoint, monitor.name, run.modes))
        self.plugins = plugins
        self.totals: Totals | None = None
        self.first_step = 0
        self.finished = ""
        self.saved_at: tuple[int, int] | None = None
        self.digest = split.digest()
        self.interruptions = Interruptions(self.world, folder)
        self.budget = Budget(self.config.optimization, self.world)
        self._status_at = 0.0
        self.evaluations: list[dict[str, Any]] = []  # within the epoch under way
        # The data under way: those of the stage, once it has begun.
        self.staged = self.config
        self.stage: int | None = None
        self.loader, self.validation = self._loaders()
        engine.on_step_end = self._hooks("on_step_end")

    @property
    def best(self) -> Ranking:
        """The monitored value so far."""
        return self.keeper.rankings[self.monitor.name]

    @property
    def samples_per_step(self) -> int:
        """Of an optimizer step, over all processes."""
        return self.loader.global_batch * self.engine.accumulation_steps

    def start(self, resumed: bool) -> None:
        """Say in the log and the status that this split is in training."""
        run = self.run
        if self.world.is_main:
            what = f"resumed at epoch {run.epoch}, step {run.step}" if resumed else "started"
            self.folder.log(f"{what} on {self.world.size} process(es), {self.world.device.type}")
            if (report := self.engine.transfer.report) is not None:
                self.folder.log(f"transfer from {self.config.transfer.checkpoint}: {report}")
            self.folder.pause(False)
        self._status("running")

    def go(self) -> None:
        """Train to the end. Raises Interrupted or Preempted after a checkpoint, DivergedError, HookError."""
        run = self.run
        with self.interruptions.signals:
            try:
                self._call("on_run_start")
                while run.epoch < run.num_epochs and not self.finished and not self.budget.is_spent(run.step):
                    self._epoch()
                if self.budget.spent and self.first_step:
                    self._close_partly()
                self._save(LAST, only_if_newer=True)
                if self.world.is_main:
                    self.keeper.finish()
                self._status("completed", reason=self.finished or self.budget.spent or "all epochs done")
                self._call("on_run_end")
            except BaseException as error:
                self._fail(error)
            finally:
                self._close_loaders()

    def _epoch(self) -> None:
        run = self.run
        self.enter_stage()
        if self.engine.transfer.is_due(run.epoch):
            self.engine.transfer.unfreeze(self.engine)
        self._call("on_epoch_start")
        if run.rebuild_requested:
            self._rebuild_data()
        self.totals = self.totals or Totals()
        run.steps_per_epoch = steps_per_epoch(len(self.loader), self.engine.accumulation_steps)
        self._begin_progress()
        if self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.world.device)
        started, first_step = time.perf_counter(), self.first_step
        if first_step and self._step_is_evaluated(first_step) and not self._is_evaluated():
            self._after_step(first_step)  # left before it was done
        self._train(first_step)
        if self.interruptions.is_leaving():
            raise StopSignal
        self.first_step = run.progress["done"]
        check_finite(run, self.world, self.totals)
        if self.first_step < run.steps_per_epoch:
            return  # the budget is spent
        trained = time.perf_counter()
        record = self._record()
        evaluation = self._evaluate(record) if self._epoch_is_evaluated() else None
        is_best = evaluation is not None and self._judge(evaluation, run.epoch + 1)
        self._advance_schedule(evaluation)
        run.metrics = record
        within = run.progress["evaluation_seconds"]
        timing = self._timing(trained - started - within, time.perf_counter() - trained + within, first_step)
        run.progress["timing"] = timing
        hook_error = self._collect(lambda: self._call("on_epoch_end"))
        self._close_epoch(record, timing, is_best)
        if hook_error is not None:
            raise hook_error

    def _begin_progress(self) -> None:
        self.run.progress = {
            "stage": "training",
            "done": self.first_step,
            "totals": self.totals,
            "samples_per_step": self.samples_per_step,
            "waiting_seconds": 0.0,
            "evaluation_seconds": 0.0,
        }

    def _record(self) -> dict[str, Any]:
        """What the steps of the epoch came to."""
        run, engine, totals = self.run, self.engine, self.totals
        assert totals is not None
        record: dict[str, Any] = {"epoch": run.epoch, "step": run.step}
        record |= {f"train/{name}": value for name, value in totals.means(self.world).items()}
        if engine.skip_after is not None:
            record["train/skipped_steps"] = totals.skipped
        groups = engine.optimizer.param_groups
        # Those of the last step: by now the schedule may have moved on.
        rates = [float(rate) for rate in totals.rates or [group["lr"] for group in groups]]
        record["learning_rate"] = max(rates)
        if len(rates) > 1:
            names = [str(group.get("name", number)) for number, group in enumerate(groups)]
            record |= {f"learning_rate_{name}": rate for name, rate in zip(names, rates, strict=True)}
        if self.evaluations:
            record["evaluations"] = list(self.evaluations)
        return record

    def _close_partly(self) -> None:
        """The budget ended within an epoch: evaluate and record what there is of it; `last` goes on from there."""
        run = self.run
        self._save(LAST, only_if_newer=True)
        here = bool(run.progress)  # else it was so already when the run was resumed
        if not here:
            self._begin_progress()
        record = self._record()
        if self._is_evaluated():
            record |= {name: value for name, value in self.evaluations[-1].items() if name != "step"}
        elif self.validation is not None:
            self._evaluate(record)  # of the budget's making: it ranks nowhere, a longer run would not have had it
        run.metrics = record
        if self.world.is_main:
            self.folder.append_history(record)
        if here:
            self._call("on_epoch_end")

    def _train(self, first_step: int) -> None:
        """The steps of the epoch, with the pauses that are asked for between them."""
        assert self.totals is not None
        while True:
            try:
                train_epoch(
                    self.run,
                    self.engine,
                    self.loader,
                    self.totals,
                    first_step,
                    self._after_step,
                    self.interruptions.asked,
                )
                return
            except StopSignal:
                if self.interruptions.is_leaving():
                    raise
                self._pause()
                first_step = self.run.progress["done"]

    def _epoch_is_evaluated(self) -> bool:
        """Whether an evaluation is due at the end of this epoch."""
        run, settings = self.run, self.config.optimization
        if self.validation is None:
            return False
        interval, every = settings.evaluation_interval, settings.evaluation_every_n_steps
        if interval and ((run.epoch + 1) % interval == 0 or run.epoch + 1 == run.num_epochs):
            return True
        return bool(every and run.step % every == 0)

    def _step_is_evaluated(self, done: int) -> bool:
        """Whether an evaluation is due after the step, and not left to the end of the epoch."""
        every = self.config.optimization.evaluation_every_n_steps
        return bool(every and self.run.step % every == 0 and done < self.run.steps_per_epoch)

    def _is_evaluated(self) -> bool:
        """Whether the model as it stands was evaluated within the epoch."""
        return bool(self.evaluations) and self.evaluations[-1]["step"] == self.run.step

    def _evaluate_step(self) -> bool:
        """Evaluate within the epoch, for the epoch's record; True when this model is among the best so far."""
        if self.validation is None:
            return False
        started, record = time.perf_counter(), {"step": self.run.step}
        is_best = self._judge(self._evaluate(record), self.run.epoch)
        self.evaluations.append(record)
        training_mode(self.engine.model)
        self.run.progress["stage"] = "training"
        self.run.progress["evaluation_seconds"] += time.perf_counter() - started
        return is_best

    def _evaluate(self, record: dict[str, Any]) -> Evaluation:
        run = self.run
        assert self.validation is not None
        run.progress["stage"] = "validation"
        run.evaluation = evaluate(
            run, self.engine, self.plugins, self.validation, "validation", self.interruptions.signalled
        )
        record |= {f"validation/{name}": value for name, value in run.evaluation.metrics.items()}
        if reasons := run.evaluation.reasons:
            record["undefined"] = {f"validation/{name}": reason for name, reason in reasons.items()}
        self._call("on_evaluate_end")
        return run.evaluation

    def _judge(self, evaluation: Evaluation, epochs: int) -> bool:
        """Whether this model is among the best so far. epochs: how many are done in its checkpoint."""
        run = self.run
        values = {name: self._value(evaluation, name) for name in self.keeper.rankings}
        return self.keeper.judge(values, Mark(epochs, run.step), run.epoch)

    def _advance_schedule(self, evaluation: Evaluation | None) -> None:
        schedule = self.engine.schedule
        followed = getattr(schedule, "metric", "") or self.monitor.name
        schedule.after_epoch(None if evaluation is None else self._value(evaluation, followed))

    def _value(self, evaluation: Evaluation, name: str) -> float:
        if name not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise ConfigError(f"the validation group has no value {name!r}; known: {known}")
        return evaluation.metrics[name]

    def _close_epoch(self, record: dict[str, Any], timing: dict[str, Any], is_best: bool) -> None:
        """History and checkpoints of a finished epoch."""
        run, keeper = self.run, self.keeper
        if self.world.is_main:
            self.folder.append_history(record)
            self.folder.append_timing(timing)
        run.epoch += 1
        self.first_step, self.totals, self.evaluations = 0, None, []
        # Plugins decide per process; stopping is everybody's decision.
        if self.world.any(bool(run.stop_requested)) and not self.finished:
            self.finished = run.stop_requested or "requested by a plugin"
        names = keeper.epoch_names(run.epoch)
        done = bool(self.finished) or run.epoch == run.num_epochs
        if names or is_best or done or keeper.is_due(run.epoch):
            self._save(LAST, *names, is_best=is_best)
        # For whoever watches; a run of very short epochs does not write it at each.
        if time.monotonic() - self._status_at > STATUS_SECONDS:
            self._status("running")

    def _after_step(self, done: int) -> bool:
        """Evaluation and checkpoints within an epoch; True when the budget is spent within it."""
        settings, step = self.config.checkpoint, self.run.step
        is_best = self._step_is_evaluated(done) and self._evaluate_step()
        keep = settings.every_n_steps and step % settings.every_n_steps == 0
        if is_best or keep or (settings.last_every_n_steps and step % settings.last_every_n_steps == 0):
            self.first_step = done
            assert self.totals is not None
            check_finite(self.run, self.world, self.totals)
            self._save(LAST, *([f"step-{step:08d}"] if keep else []), is_best=is_best)
        return self.budget.limited and done < self.run.steps_per_epoch and self.budget.is_spent(step)

    def _pause(self) -> None:
        """Wait between two steps until the run is to go on. Raises StopSignal."""
        self._status("paused")
        if self.world.is_main:
            self.folder.log(f"paused at step {self.run.step}")
        if not self.interruptions.wait():
            raise StopSignal
        self._status("running")
        if self.world.is_main:
            self.folder.log("going on")

    def _save(self, name: str, *copies: str, is_best: bool = False, only_if_newer: bool = False) -> None:
        """Write the state under `name`, and under the other names too."""
        run = self.run
        folder = self.folder.checkpoint(name)
        if only_if_newer and self.saved_at == (run.step, run.epoch):
            return
        totals = self.totals.shared(self.world) if self.totals is not None else None
        run.checkpoint = folder
        self.saved_at = (run.step, run.epoch)
        if self.world.is_main:
            checkpoint.write(folder, snapshot.take(self, totals))
            for copy in copies:
                checkpoint.link(folder, self.folder.checkpoint(copy))
            if is_best:
                self.keeper.arrange()
            self.keeper.prune()
        self._call("on_checkpoint")

    def enter_stage(self) -> None:
        """When the epoch belongs to another stage than the data: that stage's data and learning rate."""
        run, stages = self.run, self.engine.stages
        if not stages or stages.index(run.epoch) == self.stage:
            return
        self.stage = run.stage = stages.index(run.epoch)
        run.stage_settings = settings = self.config.stages[self.stage]
        self.staged = stages.config_of(self.stage)
        self._take(stages.split_of(self.stage))
        if isinstance(self.engine.schedule, ScaledSchedule):
            self.engine.schedule.set_scale(settings.learning_rate_scale)
        if self.world.is_main:
            self.folder.log(f"stage {self.stage}{' ' if settings.name else ''}{settings.name} from epoch {run.epoch}")

    def _rebuild_data(self) -> None:
        """Ask `build_data` again (the plugin has its reasons: a curriculum, larger patches)."""
        self.run.rebuild_requested = False
        self._take(self.engine.stages.rebuild(self.staged))

    def _take(self, split: Split) -> None:
        """Go on with these data."""
        self._close_loaders()
        self.split = split
        self.run.data = split.as_data()
        self.loader, self.validation = self._loaders()

    def _close_loaders(self) -> None:
        for loader in (self.loader, self.validation):
            if loader is not None:
                loader.close()

    def _loaders(self) -> tuple[Loader, Loader | None]:
        """Of the training group, and of the validation group when it is ever evaluated."""
        train = make_loader(self.staged, self.split, "train", self.engine)
        settings = self.config.optimization
        evaluates = settings.evaluation_interval or settings.evaluation_every_n_steps
        if "validation" not in self.split.groups or not evaluates:
            return train, None
        return train, make_loader(self.staged, self.split, "validation", self.engine)

    def _hooks(self, name: str) -> list[Callable[[Run], None]]:
        return [_guarded(name, hook) for hook in self.plugins.lifecycle(name)]

    def _call(self, name: str) -> None:
        for hook in self._hooks(name):
            hook(self.run)

    def _collect(self, call: Callable[[], None]) -> HookError | None:
        """Let plugins speak; their failure waits until the epoch is safely on disk."""
        try:
            call()
        except HookError as error:
            return error
        return None

    def _timing(self, training: float, evaluation: float, first_step: int) -> dict[str, Any]:
        steps = self.run.progress["done"] - first_step
        samples = steps * self.samples_per_step
        return {
            "epoch": self.run.epoch,
            "training_seconds": training,
            "waiting_seconds": self.run.progress["waiting_seconds"],
            "evaluation_seconds": evaluation,
            **peak_memory(self.world.device),
            "samples_per_second": min(samples, self.loader.size) / training if training else 0.0,
        }

    def _status(self, status: str, **facts: Any) -> None:
        self._status_at = time.monotonic()
        if self.world.is_main:
            run = self.run
            self.folder.write_status(
                status,
                epoch=run.epoch,
                num_epochs=run.num_epochs,
                step=run.step,
                best={
                    "name": self.monitor.name,
                    "value": self.best.best,
                    "epoch": self.best.epoch,
                    "step": self.best.step,
                },
                **facts,
            )

    def _fail(self, error: BaseException) -> None:
        """Leave with what can be kept: a checkpoint after a signal or a plugin's failure, the reason always."""
        run = self.run
        if isinstance(error, StopSignal):
            self.first_step = run.progress["done"]
            check_finite(run, self.world, self.totals or Totals())
            self._save(LAST)
            error = self.interruptions.error(run.step)
        elif isinstance(error, HookError) and run.step and self.saved_at != (run.step, run.epoch) and not self.several:
            # Of several processes perhaps only this one failed: the others would not come to gather the totals.
            self.first_step = run.progress.get("done", self.first_step) if self.totals is not None else 0
            self._save_quietly()
        run.exception = error
        names: dict[type[BaseException], str] = {Interrupted: "interrupted", Preempted: "preempted"}
        status = names.get(type(error), "failed")
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        self._status(status, reason=reason)
        for hook in self.plugins.lifecycle("on_exception"):
            try:
                hook(run)
            except Exception as second:  # the first error is the one to tell
                self.folder.log(f"on_exception failed: {type(second).__name__}: {second}")
        raise error

    def _save_quietly(self) -> None:
        try:
            self._save(LAST)
        except HookError as error:
            self.folder.log(str(error))


def peak_memory(device: torch.device) -> dict[str, int]:
    """Bytes: the most this process ever held, and the most tensors held on its GPU since the epoch began."""
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"peak_rss_bytes": resident * (1 if sys.platform == "darwin" else 1024)}
    if device.type == "cuda":
        peaks["peak_gpu_bytes"] = torch.cuda.max_memory_allocated(device)
    return peaks


def restore_from(fit: Fit, path: Path) -> list[str]:
    """Restore a checkpoint folder, or its predecessor when it is damaged; returns what was wrong."""
    saved, problems = checkpoint.read_newest(path)
    snapshot.restore(fit, saved)
    return problems


def _guarded(name: str, hook: Callable[[Run], None]) -> Callable[[Run], None]:
    """The hook, its exceptions naming plugin and hook; what medtrain itself raises passes."""

    def call(run: Run) -> None:
        try:
            hook(run)
        except MedtrainError:
            raise
        except Exception as error:
            where = getattr(hook, "__module__", type(hook).__name__)
            raise HookError(f"{where}: hook {name} failed: {type(error).__name__}: {error}") from error

    return call
