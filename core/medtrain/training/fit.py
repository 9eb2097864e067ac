"""The training of one split, from its first epoch (or a checkpoint) to its last: the story of a run."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.data.split import Split
from medtrain.errors import CheckpointError, HookError, Interrupted, Preempted
from medtrain.plugins import Plugins
from medtrain.run import Run
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import LAST, SplitFolder
from medtrain.rundir.retention import CheckpointRetention, ranked_values
from medtrain.training import state
from medtrain.training.engine import Engine
from medtrain.training.epoch import Epoch, SharedTotals
from medtrain.training.hooks import Hooks
from medtrain.training.interruptions import Budget, Interruptions, StopSignal
from medtrain.training.loaders import StageData
from medtrain.training.optimizers import Freezing
from medtrain.training.status import Status
from medtrain.training.step import CHECK_EVERY, check_finite, train_steps
from medtrain.training.validation import Validation


@dataclass(frozen=True)
class TrainResult:
    """What a training came to, on every process.

    best_checkpoint: folder of the best model, or of the last one when nothing was monitored.
    best_metric: {"name", "value", "epoch"}, value None when the monitored value never existed.
    """

    maps: Path
    split: int
    best_checkpoint: Path
    best_metric: dict[str, Any]
    epochs: int
    metrics: dict[str, float]


class Fit:
    """One split in training. Every process runs the same; only the main one writes.

    context: what hooks receive. best: the monitored value so far. finished: the reason the run ended before its last
    epoch, empty while it goes on.
    """

    def __init__(self, context: Run, engine: Engine, split: Split, plugins: Plugins, folder: SplitFolder) -> None:
        self.context, self.engine, self.plugins, self.folder = context, engine, plugins, folder
        self.world, settings = engine.world, context.config.checkpoint
        self.hooks = Hooks(plugins, context)
        self.data = StageData(context, engine, split, folder)
        self.epoch = Epoch(context, engine)
        self.retention = CheckpointRetention(settings, folder, ranked_values(settings, context.monitor, context.modes))
        self.best = self.retention.rankings[context.monitor]
        self.interruptions = Interruptions(self.world, folder)
        self.budget = Budget(context.config.optimization, self.world)
        self.validation = Validation(
            context, engine, self.hooks, self.data, self.epoch, self.retention, self.interruptions
        )
        self.freezing = Freezing(context, engine)
        self.status = Status(context, folder, self.best)
        self.finished = ""
        self.saved_at: tuple[int, int] | None = None

    def run(self) -> None:
        """Train to the end. Raises Interrupted or Preempted after a checkpoint, DivergedError, HookError."""
        run, epoch, validation = self.context, self.epoch, self.validation
        with self.interruptions.signals:
            try:
                self.hooks.call("on_run_start")
                while run.epoch < run.num_epochs and not self.finished and not self.budget.is_spent(run.step):
                    self.start_epoch()
                    self.train()
                    if epoch.done < run.steps_per_epoch:
                        break  # the budget is exhausted
                    trained = time.perf_counter()
                    record = epoch.record()
                    evaluation = validation.evaluate(record) if validation.is_due_after_epoch() else None
                    is_best = evaluation is not None and validation.update_best(evaluation, run.epoch + 1)
                    self.engine.schedule.after_epoch(validation.followed_value(evaluation))
                    run.metrics = record
                    run.progress["timing"] = timing = epoch.timing(trained, self.data.train.size)
                    hook_error = self.hooks.deferred("on_epoch_end")  # raised when the epoch is saved
                    self.finish_epoch(record, timing, is_best)
                    if hook_error is not None:
                        raise hook_error
                if self.budget.spent and epoch.done:
                    self.finish_partial_epoch()
                if not self.is_saved():
                    self.save(LAST)
                if self.world.is_main:
                    self.retention.finish()
                self.status.write("completed", reason=self.finished or self.budget.spent or "all epochs done")
                self.hooks.call("on_run_end")
            except BaseException as error:
                self.fail(error)
            finally:
                self.data.close()

    def start_epoch(self) -> None:
        """The data and parameters of the epoch: its stage, what plugins want to be different, what unfreezes."""
        self.data.enter_stage()
        self.hooks.call("on_epoch_start")
        self.freezing.follow()
        self.data.rebuild()
        self.epoch.begin(self.data.steps_per_epoch, self.data.samples_per_step)

    def train(self) -> None:
        """Take the steps of the epoch; it ends early when the budget is exhausted. Raises StopSignal."""
        run, engine, epoch, budget = self.context, self.engine, self.epoch, self.budget
        on_step_end = self.hooks.of("on_step_end")
        acts_within = self.validation.every_n_steps or self.retention.acts_within_epochs
        if epoch.done and self.validation.is_due_after_step() and not self.validation.is_done():
            self.after_step()  # the run was left before it was done
        for done in train_steps(run, engine, self.data.train, epoch.totals, epoch.done):
            epoch.done = done
            for hook in on_step_end:
                hook(run)
            if run.step % CHECK_EVERY == 0:
                check_finite(run, self.world, epoch.totals)
            if acts_within:
                self.after_step()
            if budget.limited and done < run.steps_per_epoch and budget.is_spent(run.step):
                break
            if self.interruptions.asked(run.step):
                self.pause()
        if self.interruptions.is_leaving():
            raise StopSignal
        check_finite(run, self.world, epoch.totals)

    def after_step(self) -> None:
        """Evaluation and checkpoints within an epoch."""
        run, retention = self.context, self.retention
        is_best = self.validation.is_due_after_step() and self.validation.evaluate_within_epoch()
        names = retention.step_names(run.step)
        if is_best or names or retention.is_due_after_step(run.step):
            check_finite(run, self.world, self.epoch.totals)
            self.save(LAST, *names, is_best=is_best)

    def pause(self) -> None:
        """Wait between two steps until the run is to go on. Raises StopSignal when it is to end."""
        if self.interruptions.is_leaving():
            raise StopSignal
        self.status.write("paused")
        if self.world.is_main:
            self.folder.log(f"paused at step {self.context.step}")
        if not self.interruptions.wait():
            raise StopSignal
        self.status.write("running")
        if self.world.is_main:
            self.folder.log("going on")

    def finish_epoch(self, record: dict[str, Any], timing: dict[str, Any], is_best: bool) -> None:
        """History and checkpoints of a whole epoch."""
        run, retention = self.context, self.retention
        if self.world.is_main:
            self.folder.append_history(record)
            self.folder.append_timing(timing)
        run.epoch += 1
        self.epoch.clear()
        # Plugins decide per process; stopping is everybody's decision.
        if self.world.any(bool(run.stop_requested)) and not self.finished:
            self.finished = run.stop_requested or "requested by a plugin"
        names = retention.epoch_names(run.epoch)
        done = bool(self.finished) or run.epoch == run.num_epochs
        if names or is_best or done or retention.is_due_after_epoch(run.epoch):
            self.save(LAST, *names, is_best=is_best)
        self.status.refresh()

    def finish_partial_epoch(self) -> None:
        """The budget ended within an epoch: evaluate and record what there is of it; `last` goes on from there."""
        run, epoch, validation = self.context, self.epoch, self.validation
        if not self.is_saved():
            self.save(LAST)
        here = bool(run.progress)  # else it was so already when the run was resumed
        if not here:
            epoch.begin(self.data.steps_per_epoch, self.data.samples_per_step)
        record = epoch.record()
        if validation.is_done():
            record |= {name: value for name, value in epoch.evaluations[-1].items() if name != "step"}
        elif self.data.validation is not None:
            validation.evaluate(record)  # of the budget's making: it ranks nowhere, a longer run would not have had it
        run.metrics = record
        if self.world.is_main:
            self.folder.append_history(record)
        if here:
            self.hooks.call("on_epoch_end")

    def fail(self, error: BaseException) -> None:
        """Leave with what can be kept: a checkpoint after a signal or a plugin's failure, the reason always."""
        run = self.context
        if isinstance(error, StopSignal):
            check_finite(run, self.world, self.epoch.totals)
            self.save(LAST)
            error = self.interruptions.error(run.step)
        elif isinstance(error, HookError) and run.step and not self.is_saved() and self.world.size == 1:
            # Of several processes perhaps only this one failed: the others would not come to gather the totals.
            try:
                self.save(LAST)
            except HookError as second:
                self.folder.log(str(second))
        run.exception = error
        names: dict[type[BaseException], str] = {Interrupted: "interrupted", Preempted: "preempted"}
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        self.status.write(names.get(type(error), "failed"), reason=reason)
        self.hooks.on_exception(self.folder.log)
        raise error

    def is_saved(self) -> bool:
        """Whether this process has written the state as it stands."""
        return self.saved_at == (self.context.step, self.context.epoch)

    def save(self, name: str, *copies: str, is_best: bool = False) -> None:
        """Write the state under `name`, and under the other names too."""
        run, folder = self.context, self.folder.checkpoint(name)
        run.checkpoint = folder
        self.saved_at = (run.step, run.epoch)
        texts = {"config.toml": run.config.to_toml()}
        if self.world.is_main:
            texts["split.json"] = (self.folder.path / "split.json").read_text(encoding="utf-8")
        captured = state.capture(self.engine, self.parts(), self.facts(), texts)
        if self.world.is_main:
            checkpoint.write(folder, captured)
            self.retention.after_write(folder, copies, is_best)
        self.hooks.call("on_checkpoint")

    def parts(self) -> dict[str, state.Part | None]:
        """What a checkpoint holds besides weights and facts."""
        engine, epoch = self.engine, self.epoch
        return {
            "optimizer": engine.optimizer,
            "schedule": engine.schedule,
            "scaler": engine.scaler,
            "totals": SharedTotals(epoch, self.world),
            "best": self.retention,
            "evaluations": state.Attribute(epoch, "evaluations"),
            "skipped": state.Attribute(engine, "skipped"),
            "frozen": self.freezing,
            "plugins": state.PluginStates(self.plugins, self.world.is_main),
        }

    def facts(self) -> dict[str, Any]:
        """Where the run stands, for the manifest of a checkpoint."""
        run = self.context
        return {
            "step": run.step,
            "epoch": run.epoch,
            "steps_into_epoch": self.epoch.done,
            "global_batch": self.data.samples_per_step,
            "membership": self.data.digest,
            "finished": self.finished,
            "seconds": round(self.budget.seconds, 3),
            "stop_requested": "" if self.finished else run.stop_requested,
        }

    def restore(self, path: Path) -> None:
        """Take up a checkpoint, or its predecessor when it is damaged; what was recorded after it is removed."""
        run = self.context
        saved, problems = checkpoint.read_newest(path)
        facts = saved.facts
        self._check_origin(facts)
        run.step, run.epoch, self.epoch.done = facts["step"], facts["epoch"], facts["steps_into_epoch"]
        self.data.enter_stage()
        if self.epoch.done and facts["global_batch"] != self.data.samples_per_step:
            raise CheckpointError(
                f"the checkpoint lies in the middle of an epoch of {facts['global_batch']} samples per step, this run "
                f"has {self.data.samples_per_step}: resume with the same number of processes and batch size, or from "
                "the end of an epoch"
            )
        # First the parameters that train: the state of the optimizer is that of its groups. They may make it a new
        # schedule, so the other parts are looked up afterwards.
        self.freezing.load_state_dict(saved.state["frozen"])
        parts = self.parts()
        del parts["frozen"]
        state.restore(saved, self.engine, parts)
        self.budget.resume_from(facts["seconds"])
        run.stop_requested = facts["stop_requested"]
        # Early stopping ended the run for good; running out of epochs did not: more may have been asked for.
        self.finished = facts["finished"]
        if self.world.is_main:
            for problem in problems:
                self.folder.log(f"damaged checkpoint passed over: {problem}")
            self.folder.cut_history(run.epoch)
            self.retention.after_resume(run.step, run.epoch, at_epoch_end=not self.epoch.done)
        self.world.barrier()

    def _check_origin(self, facts: dict[str, Any]) -> None:
        if source := facts.get("imported"):
            raise CheckpointError(
                f"{source} trained these weights, and how it would have gone on is not known here; start a run from "
                f"them with transfer.checkpoint and the folder of the checkpoint in {self.folder.path}"
            )
        if facts["membership"] != self.data.digest:
            raise CheckpointError(
                "the data are not those of the checkpoint: the groups have other members now; "
                f"{self.folder.path / 'split.json'} lists the ones it was trained on"
            )

    def start(self, resumed: bool) -> None:
        """Say in the log and the status that this split is in training."""
        run, world = self.context, self.world
        if world.is_main:
            what = f"resumed at epoch {run.epoch}, step {run.step}" if resumed else "started"
            self.folder.log(f"{what} on {world.size} process(es), {world.device.type}")
            self.folder.pause(False)
        self.status.write("running")

    def result(self) -> TrainResult:
        """What the training came to."""
        run, folder, best = self.context, self.folder, self.best
        kept = folder.checkpoint(f"best-{run.monitor}")
        value = {"name": run.monitor, "value": best.best, "epoch": best.epoch}
        where = kept if kept.is_dir() else folder.checkpoint(LAST)
        return TrainResult(folder.path.parent, folder.number, where, value, run.epoch, dict(run.metrics))
