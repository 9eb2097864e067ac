"""The training of one split, from its first epoch (or a checkpoint) to its last: the story of a run."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medtrain import build, checkpoint
from medtrain.build import Monitor
from medtrain.checkpoint import Checkpoint
from medtrain.data import Loader, Split
from medtrain.defaults import Improvement
from medtrain.errors import CheckpointError, ConfigError, HookError, Interrupted, MedtrainError, Preempted
from medtrain.loop import Engine, StopSignal, Totals, batches, check_finite, evaluate_group, train_epoch
from medtrain.maps import SplitFolder
from medtrain.metrics import Evaluation
from medtrain.model import unwrap
from medtrain.plugins import Plugins
from medtrain.run import Run
from medtrain.signals import Signals
from medtrain.weights import load_state

LAST = "last"
STATUS_SECONDS = 1.0


class Fit:
    """One split in training. Every process runs the same; only the main one writes."""

    def __init__(
        self, run: Run, engine: Engine, split: Split, plugins: Plugins, folder: SplitFolder, monitor: Monitor
    ) -> None:
        self.run, self.engine, self.split, self.plugins, self.folder = run, engine, split, plugins, folder
        self.config, self.world = run.config, engine.world
        self.several = self.world.size > 1
        self.monitor = monitor
        self.best = Improvement(monitor.mode)
        stopping = self.config.early_stopping
        watched = build.choose_monitor(self.config, engine.metrics, stopping.monitor)
        self.watched = watched.name
        self.stopper = Improvement(watched.mode if stopping.mode == "auto" else stopping.mode, stopping.min_delta)
        self.totals: Totals | None = None
        self.first_step = 0
        self.finished = ""
        self.saved_at: tuple[int, int] | None = None
        self.digest = split.digest()
        self.signals = Signals()
        self._status_at = 0.0
        self.loader = self._train_loader()
        self.validation: Loader | None = None
        if "validation" in split.groups and self.config.optimization.evaluation_interval:
            self.validation = build.make_loader(self.config, split, "validation", engine)
        engine.on_step_end = self._hooks("on_step_end")

    def start(self, resumed: bool) -> None:
        """Say in the log and the status that this split is in training."""
        run = self.run
        if self.world.is_main:
            what = f"resumed at epoch {run.epoch}, step {run.step}" if resumed else "started"
            self.folder.log(f"{what} on {self.world.size} process(es), {self.world.device.type}")
        self._status("running")

    def go(self) -> None:
        """Train to the end. Raises Interrupted or Preempted after a checkpoint, DivergedError, HookError."""
        run = self.run
        with self.signals:
            try:
                self._call("on_run_start")
                while run.epoch < run.num_epochs and not self.finished:
                    self._epoch()
                self._save(LAST, only_if_newer=True)
                self._status("completed", reason=self.finished or "all epochs done")
                self._call("on_run_end")
            except BaseException as error:
                self._fail(error)
            finally:
                self._close_loaders()

    def _epoch(self) -> None:
        run = self.run
        self._call("on_epoch_start")
        if run.rebuild_requested:
            self._rebuild_data()
        self.totals = self.totals or Totals()
        run.steps_per_epoch = build.steps_per_epoch(len(self.loader), self.engine.accumulation_steps)
        run.progress = {
            "stage": "training",
            "done": self.first_step,
            "totals": self.totals,
            "samples_per_step": self.loader.global_batch * self.engine.accumulation_steps,
        }
        started, first_step = time.perf_counter(), self.first_step
        train_epoch(run, self.engine, self.loader, self.totals, first_step, self._after_step, self._stop_asked)
        if self.world.any(self._stop_asked()):
            raise StopSignal
        self.first_step = run.progress["done"]
        check_finite(run, self.world, self.totals)
        trained = time.perf_counter()
        record: dict[str, Any] = {"epoch": run.epoch, "step": run.step}
        record |= {f"train/{name}": value for name, value in self.totals.means(self.world).items()}
        rates = [float(group["lr"]) for group in self.engine.optimizer.param_groups]
        record["learning_rate"] = max(rates)
        evaluated = self._validate(record)
        is_best = self._judge(evaluated)
        run.metrics = record
        timing = self._timing(trained - started, time.perf_counter() - trained, first_step)
        hook_error = self._collect(lambda: self._call("on_epoch_end"))
        self._close_epoch(record, timing, is_best)
        if hook_error is not None:
            raise hook_error

    def _validate(self, record: dict[str, Any]) -> Evaluation | None:
        """Evaluate the validation group when it is due, into the record."""
        run = self.run
        interval = self.config.optimization.evaluation_interval
        due = (run.epoch + 1) % interval == 0 or run.epoch + 1 == run.num_epochs if interval else False
        if self.validation is None or not due:
            return None
        run.progress["stage"] = "validation"
        run.evaluation = evaluate(run, self.engine, self.plugins, self.validation, "validation", self._stop_asked)
        record |= {f"validation/{name}": value for name, value in run.evaluation.metrics.items()}
        if reasons := run.evaluation.reasons:
            record["undefined"] = {f"validation/{name}": reason for name, reason in reasons.items()}
        self._call("on_evaluate_end")
        return run.evaluation

    def _judge(self, evaluation: Evaluation | None) -> bool:
        """Best model, schedule and early stopping; True when this is the best model so far."""
        run = self.run
        if evaluation is None:
            self.engine.schedule.after_epoch(None)
            return False
        value = self._value(evaluation, self.monitor.name)
        is_best = self.best.update(value, run.epoch)
        self.engine.schedule.after_epoch(value)
        patience = self.config.early_stopping.patience
        self.stopper.update(self._value(evaluation, self.watched), run.epoch)
        if patience is not None and self.stopper.since >= patience:
            self.finished = f"{self.watched} has not improved for {patience} evaluations"
        return is_best

    def _value(self, evaluation: Evaluation, name: str) -> float:
        if name not in evaluation.metrics:
            known = ", ".join(evaluation.metrics)
            raise ConfigError(f"the validation group has no value {name!r}; known: {known}")
        return evaluation.metrics[name]

    def _close_epoch(self, record: dict[str, Any], timing: dict[str, Any], is_best: bool) -> None:
        """History and checkpoints of a finished epoch."""
        run, settings = self.run, self.config.checkpoint
        if self.world.is_main:
            self.folder.append_history(record)
            self.folder.append_timing(timing)
        run.epoch += 1
        self.first_step, self.totals = 0, None
        # Plugins decide per process; stopping is everybody's decision.
        if self.world.any(bool(run.stop_requested)) and not self.finished:
            self.finished = run.stop_requested or "requested by a plugin"
        names = self._epoch_names(is_best)
        done = bool(self.finished) or run.epoch == run.num_epochs
        due = settings.last_every_n_epochs and run.epoch % settings.last_every_n_epochs == 0
        if names or done or due:
            self._save(LAST, *names)
        # For whoever watches; a run of very short epochs does not write it at each.
        if time.monotonic() - self._status_at > STATUS_SECONDS:
            self._status("running")

    def _epoch_names(self, is_best: bool) -> list[str]:
        """The names besides `last` under which the epoch that just ended is kept."""
        settings, epoch = self.config.checkpoint, self.run.epoch
        names = []
        if settings.every_n_epochs and epoch % settings.every_n_epochs == 0:
            names.append(f"epoch-{epoch:04d}")
        if is_best and settings.best:
            names.append(f"best-{self.monitor.name}")
        return names

    def _after_step(self, done: int) -> None:
        every = self.config.checkpoint.every_n_steps
        if every and self.run.step % every == 0:
            self.first_step = done
            assert self.totals is not None
            check_finite(self.run, self.world, self.totals)
            self._save(LAST, f"step-{self.run.step:08d}")

    def _stop_asked(self) -> bool:
        return self.signals.pending != 0

    def _save(self, name: str, *copies: str, only_if_newer: bool = False) -> None:
        """Write the state under `name`, and under the other names too."""
        run = self.run
        folder = self.folder.checkpoint(name)
        if only_if_newer and self.saved_at == (run.step, run.epoch):
            return
        totals = self.totals.shared(self.world) if self.totals is not None else None
        run.checkpoint = folder
        self.saved_at = (run.step, run.epoch)
        if self.world.is_main:
            checkpoint.write(folder, self._checkpoint(totals))
            for copy in copies:
                checkpoint.link(folder, self.folder.checkpoint(copy))
            self._prune()
        self._call("on_checkpoint")

    def _prune(self) -> None:
        keep = self.config.checkpoint.keep_last_n
        if keep is None:
            return
        for kind in ("epoch-", "step-"):
            periodic = [path for path in self.folder.checkpoints() if path.name.startswith(kind)]
            for path in periodic[:-keep]:
                checkpoint.remove(path)

    def _checkpoint(self, totals: Totals | None) -> Checkpoint:
        engine, run = self.engine, self.run
        model = unwrap(engine.plain).state_dict()
        state: dict[str, Any] = {
            "optimizer": engine.optimizer.state_dict(),
            "schedule": engine.schedule.state_dict(),
            "scaler": engine.scaler.state_dict() if engine.scaler else None,
            "totals": None if totals is None else totals.state_dict(),
            "best": self.best.state_dict(),
            "stopper": self.stopper.state_dict(),
            "plugins": {
                plugin.name: plugin.plugin.state_dict()
                for plugin in self.plugins.loaded
                if hasattr(plugin.plugin, "state_dict")
            },
        }
        if engine.ema is not None:
            state["ema"] = {"training_model": model, "n_averaged": engine.ema.n_averaged}
            model = unwrap(engine.ema.module).state_dict()
        facts = {
            "step": run.step,
            "epoch": run.epoch,
            "steps_into_epoch": self.first_step,
            "global_batch": self.loader.global_batch * engine.accumulation_steps,
            "membership": self.digest,
            "finished": self.finished,
        }
        texts = {
            "config.toml": self.config.to_toml(),
            "split.json": (self.folder.path / "split.json").read_text(encoding="utf-8"),
        }
        return Checkpoint(model, state, facts, texts)

    def restore(self, saved: Checkpoint) -> None:
        """Take up the state of a checkpoint; what was recorded after it is forgotten."""
        run, engine, facts = self.run, self.engine, saved.facts
        if facts["membership"] != self.digest:
            raise CheckpointError(
                "the data are not those of the checkpoint: the groups have other members now; "
                f"{self.folder.path / 'split.json'} lists the ones it was trained on"
            )
        here = self.loader.global_batch * engine.accumulation_steps
        if facts["steps_into_epoch"] and facts["global_batch"] != here:
            raise CheckpointError(
                f"the checkpoint lies in the middle of an epoch of {facts['global_batch']} samples per step, this run "
                f"has {here}: resume with the same number of processes and batch size, or from the end of an epoch"
            )
        state = saved.state
        weights = saved.model
        if engine.ema is not None:
            load_state(unwrap(engine.ema.module), saved.model, "checkpoint")
            engine.ema.n_averaged.copy_(state["ema"]["n_averaged"])
            weights = state["ema"]["training_model"]
        load_state(unwrap(engine.plain), weights, "checkpoint")
        engine.optimizer.load_state_dict(state["optimizer"])
        engine.schedule.load_state_dict(state["schedule"])
        if engine.scaler:
            engine.scaler.load_state_dict(state["scaler"])
        for plugin in self.plugins.loaded:
            if plugin.name in state["plugins"]:
                plugin.plugin.load_state_dict(state["plugins"][plugin.name])
        self.best.load_state_dict(state["best"])
        self.stopper.load_state_dict(state["stopper"])
        run.step, run.epoch = facts["step"], facts["epoch"]
        self.first_step = facts["steps_into_epoch"]
        # Early stopping ended the run for good; running out of epochs did not: more may have been asked for.
        self.finished = facts["finished"]
        if state["totals"] is not None:
            self.totals = Totals.from_state(state["totals"], self.world)
        if self.world.is_main:
            self._forget_later(facts["step"])
        self.world.barrier()

    def _forget_later(self, step: int) -> None:
        run, folder = self.run, self.folder
        folder.cut_history(run.epoch)
        for path in folder.checkpoints():
            if checkpoint.read_manifest(path)["step"] > step:
                checkpoint.remove(path)
        # Killed between writing `last` and giving it its other names: they are given now.
        last = folder.checkpoint(LAST)
        if run.epoch and not self.first_step and last.is_dir():
            for name in self._epoch_names(self.best.epoch == run.epoch - 1):
                if checkpoint.read_manifest(last)["step"] == step:
                    checkpoint.link(last, folder.checkpoint(name))

    def _rebuild_data(self) -> None:
        """Ask `build_data` again (the plugin has its reasons: a curriculum, larger patches)."""
        self.run.rebuild_requested = False
        self._close_loaders()
        self.split = build.build_split(self.config, self.plugins, self.world)
        self.run.data = self.split.as_data()
        self.loader = self._train_loader()
        if self.validation is not None:
            self.validation = build.make_loader(self.config, self.split, "validation", self.engine)

    def _close_loaders(self) -> None:
        for loader in (self.loader, self.validation):
            if loader is not None:
                loader.close()

    def _train_loader(self) -> Loader:
        return build.make_loader(self.config, self.split, "train", self.engine)

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
        samples = steps * self.loader.global_batch * self.engine.accumulation_steps
        return {
            "epoch": self.run.epoch,
            "training_seconds": training,
            "evaluation_seconds": evaluation,
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
                best={"name": self.monitor.name, "value": self.best.best, "epoch": self.best.epoch},
                **facts,
            )

    def _fail(self, error: BaseException) -> None:
        """Leave with what can be kept: a checkpoint after a signal or a plugin's failure, the reason always."""
        run = self.run
        if isinstance(error, StopSignal):
            self.first_step = run.progress["done"]
            check_finite(run, self.world, self.totals or Totals())
            self._save(LAST)
            error = self._signal_error()
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

    def _signal_error(self) -> MedtrainError:
        number = signal.SIGINT if self.world.any(self.signals.pending == signal.SIGINT) else signal.SIGTERM
        where = f"checkpoint written at step {self.run.step}; go on with `medtrain resume {self.folder.path.parent}`"
        if number == signal.SIGINT:
            return Interrupted(f"interrupted; {where}")
        return Preempted(f"asked to leave; {where}")


def evaluate(
    run: Run,
    engine: Engine,
    plugins: Plugins,
    loader: Loader,
    group: str,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """A plugin's own evaluation, or the core's loop over the group."""
    answer = plugins.ask("evaluate", run=run, loader=batches(loader, engine))
    if answer is None:
        return evaluate_group(run, engine, loader, group, stop=stop)
    result: Evaluation = engine.world.broadcast(answer)
    return result


def restore_from(fit: Fit, path: Path) -> list[str]:
    """Restore a checkpoint folder, or its predecessor when it is damaged; returns what was wrong."""
    saved, problems = checkpoint.read_newest(path)
    fit.restore(saved)
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
