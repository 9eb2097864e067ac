"""The Trainer: assemble, train, resume, evaluate, predict. The command line is a thin caller of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from medtrain import build, checkpoint, distributed, maps
from medtrain.build import Monitor
from medtrain.config import Layers, OptimizationSection, RunConfig, read_toml
from medtrain.data import Data, Split
from medtrain.errors import CheckpointError, ConfigError, DataError, PluginError, UsageError
from medtrain.fit import LAST, Fit, evaluate, restore_from
from medtrain.hookspecs import hookimpl
from medtrain.loop import Engine
from medtrain.maps import Maps, SplitFolder
from medtrain.metrics import Evaluation, Metric
from medtrain.model import unwrap
from medtrain.plugins import Plugins
from medtrain.run import Run
from medtrain.weights import load_state


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


class Trainer:
    """Trains one configuration into one run directory.

    maps: the run directory; default `runs/<time>-<plugin>`. model, loss, metrics: objects to use instead of what
    plugins build. optimization: replaces that section of the configuration. callbacks: objects with hook methods
    (`@medtrain.hookimpl`). plugins: names, or objects with hook methods. config: a complete configuration, which
    then names the plugins.
    """

    def __init__(
        self,
        maps: str | Path | None = None,
        model: nn.Module | None = None,
        metrics: Sequence[Metric] | None = None,
        optimization: OptimizationSection | None = None,
        callbacks: Sequence[Any] | None = None,
        plugins: Sequence[Any] = (),
        *,
        loss: Callable[..., Any] | None = None,
        config: RunConfig | None = None,
    ) -> None:
        named = list(plugins) or (config.run.plugins if config else [])
        given = [_Given(model, loss, metrics)] if model or loss or metrics is not None else []
        self.plugins = Plugins.of([*named, *given, *(callbacks or ())])
        if config is None:
            layers = Layers()
            layers.add({"run": {"plugins": [name for name in named if isinstance(name, str)]}}, "Trainer")
            config = layers.build(self.plugins.options())
        if optimization is not None:
            config = config.model_copy(update={"optimization": optimization})
        self.config = config
        self.run: Run | None = None
        self.path = Path(maps) if maps is not None else None

    @classmethod
    def from_maps(
        cls,
        path: str | Path,
        *,
        model: nn.Module | None = None,
        loss: Callable[..., Any] | None = None,
        metrics: Sequence[Metric] | None = None,
        callbacks: Sequence[Any] | None = None,
        plugins: Sequence[Any] | None = None,
        assignments: Sequence[str] = (),
    ) -> Trainer:
        """The trainer of an existing run, from its recorded configuration.

        Objects that were given when it was made are given again (plugins by name are found by it). assignments:
        `key=value` changes, as `--set` takes them.
        """
        opened = Maps.open(Path(path))
        text, values = read_toml(opened.config_file)
        named = list(plugins) if plugins is not None else list(values["run"]["plugins"])
        layers = Layers()
        layers.add(values, str(opened.config_file), text)
        names = [name for name in named if isinstance(name, str)]
        for assignment in assignments:
            layers.add_assignment(assignment, names)
        config = layers.build(Plugins.of(named).options())
        return cls(path, model, metrics, None, callbacks, named, loss=loss, config=config)

    def train(self, split: Data | None = None) -> TrainResult:
        """Train from the first epoch to the last.

        split: data to use instead of what plugins build. Raises DataError, ConfigError and PluginError before
        anything is written; Interrupted and Preempted after a checkpoint.
        """
        world = distributed.join(self.config.computational.device)
        path = self.path or maps.default_path(self.config.run.plugins, self.config.run.name)
        path = world.broadcast(path)
        if world.is_main:
            maps.check_creatable(path)
        parts = self._assemble(world, split)
        if world.is_main:
            Maps.create(path, self.config.to_toml(), self._plugin_rows(), maps.environment())
        self.path = path
        folder = Maps(path).split(0)
        try:
            return self._fit(folder, parts, None)
        except (ConfigError, DataError, PluginError):
            # A mistake that shows before the first checkpoint leaves nothing worth keeping.
            if world.is_main and not folder.checkpoints():
                shutil.rmtree(path)
            raise

    def resume(self, split_idx: int = 0, checkpoint: str | Path = LAST, split: Data | None = None) -> TrainResult:
        """Go on from a checkpoint of this run: `last`, `best-<metric>`, `epoch-NNNN`, `step-NNNNNNNN` or a folder.

        A run that ended before its first checkpoint starts over.
        """
        world = distributed.join(self.config.computational.device)
        folder = self._opened().split(split_idx)
        source = None
        if checkpoint != LAST or folder.has_checkpoint():
            source = self._find_checkpoint(folder, str(checkpoint))
            self.config = self.config.with_fresh_model()
        elif world.is_main:
            folder.cut_history(0)
        parts = self._assemble(world, split)
        return self._fit(folder, parts, source)

    def evaluate(
        self,
        group: str = "test",
        *,
        split_idx: int = 0,
        checkpoint: str | Path | None = None,
        split: Data | None = None,
        table: Path | None = None,
        images: Path | None = None,
        details: bool = True,
    ) -> Evaluation:
        """Evaluate a checkpoint (default: the best, else the last) on a group of the run's data, or on new data.

        split, table, images: new data; group "all" is all of them. New data may not hold participants the model was
        fitted on; the run's own must still have the recorded members. details: also what metrics add when asked for
        more (confidence intervals, strata).
        """
        world = distributed.join(self.config.computational.device)
        folder = self._opened().split(split_idx)
        recorded = folder.membership()
        config = self.config.with_fresh_model()
        new = split is not None or table is not None or images is not None
        if table is not None or images is not None:
            changes = {"table": table or config.data.table, "images": images}
            config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
        groups = build.evaluation_groups(config, self.plugins, world, split, recorded, new)
        if group not in groups.groups:
            raise DataError(f"there is no group {group!r} in these data; groups: {', '.join(groups.groups)}")
        metrics = build.build_metrics(config, self.plugins, groups)
        engine = build.build_evaluator(config, self.plugins, world, metrics)
        run = Run(config, unwrap(engine.plain), world.device, folder, groups.as_data(), loss=engine.loss)
        run.is_main_process, run.split = world.is_main, split_idx
        self._load(folder, engine, run, checkpoint)
        loader = build.make_loader(config, groups, group, engine)
        run.evaluation = result = evaluate(run, engine, self.plugins, loader, group)
        if details and world.is_main:
            for metric in engine.metrics:
                if hasattr(metric, "details"):
                    result.details |= metric.details(result.rows, self.config.run.seed)
        for hook in self.plugins.lifecycle("on_evaluate_end"):
            hook(run)
        self.run = run
        return result

    def report(self, out: Path | None = None) -> Path:
        """Write the last evaluation (metrics, predictions, plots, HTML report); returns the folder."""
        if self.run is None or self.run.evaluation is None or self.run.maps is None:
            raise UsageError("nothing has been evaluated yet: call evaluate first")
        from medtrain.report import write_evaluation

        folder = out or self.run.maps.evaluation(self.run.evaluation.group)
        sections = [section for answer in self.plugins.each("report_sections", run=self.run) for section in answer]
        write_evaluation(folder, self.run, sections)
        return folder

    def predict(self, sample: Any, *, split_idx: int = 0, checkpoint: str | Path | None = None) -> Any:
        """A table of predictions for what the plugin understands as input (a folder, a file)."""
        world = distributed.join(self.config.computational.device)
        folder = self._opened().split(split_idx)
        config = self.config.with_fresh_model()
        model = unwrap(build.build_module(config, self.plugins, world))
        run = Run(config, model, world.device, folder, split=split_idx)
        path = self._evaluated_checkpoint(folder, checkpoint)
        load_state(run.model, checkpoint_weights(path), str(path))
        run.model.eval()
        run.checkpoint = path
        answer = self.plugins.ask("predict", run=run, sample=sample)
        if answer is None:
            raise PluginError(f"none of the plugins {', '.join(self.plugins.names)} can predict (hook predict)")
        return answer

    def dry_run(self) -> dict[str, Any]:
        """Assemble everything and say what it is; nothing is trained or written."""
        world = distributed.join(self.config.computational.device)
        run, engine, split, monitor = self._assemble(world, None)
        plan = build.make_plan(self.config, engine, split, monitor)
        return {
            "plugins": ", ".join(self.plugins.names),
            "samples": {name: len(dataset) for name, dataset in split.groups.items()},
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
            "epochs": plan.num_epochs,
            "steps_per_epoch": plan.steps_per_epoch,
            "monitor": f"{monitor.name} ({monitor.mode})",
            "device": str(world.device),
            "processes": world.size,
        }

    def _assemble(self, world: distributed.World, given: Data | None) -> tuple[Run, Engine, Split, Monitor]:
        if given is not None:
            split = build.split_data(self.config, given)
        else:
            split = build.build_split(self.config, self.plugins, world)
        metrics = build.build_metrics(self.config, self.plugins, split)
        monitor = build.choose_monitor(self.config, metrics)
        build.choose_monitor(self.config, metrics, self.config.early_stopping.monitor)
        engine = build.build_engine(self.config, self.plugins, world, metrics, split, monitor)
        run = Run(
            config=self.config,
            model=unwrap(engine.plain),
            device=world.device,
            data=split.as_data(),
            optimizer=engine.optimizer,
            schedule=engine.schedule,
            loss=engine.loss,
            num_epochs=self.config.optimization.num_epochs,
            is_main_process=world.is_main,
        )
        return run, engine, split, monitor

    def _fit(self, folder: SplitFolder, parts: tuple[Run, Engine, Split, Monitor], source: Path | None) -> TrainResult:
        run, engine, split, _ = parts
        run.maps, run.split = folder, folder.number
        if not engine.world.is_main:
            return self._go(folder, parts, source)
        with folder.locked():
            if source is None:
                folder.write_membership(split.membership(), split.digest(), split.about)
            return self._go(folder, parts, source)

    def _go(self, folder: SplitFolder, parts: tuple[Run, Engine, Split, Monitor], source: Path | None) -> TrainResult:
        run, engine, split, monitor = parts
        fit = Fit(run, engine, split, self.plugins, folder, monitor)
        if source is not None:
            for problem in restore_from(fit, source):
                folder.log(f"damaged checkpoint passed over: {problem}")
        fit.start(resumed=source is not None)
        fit.go()
        engine.world.barrier()
        best = folder.checkpoint(f"best-{monitor.name}")
        value = {"name": monitor.name, "value": fit.best.best, "epoch": fit.best.epoch}
        kept = best if best.is_dir() else folder.checkpoint(LAST)
        assert self.path is not None
        return TrainResult(self.path, folder.number, kept, value, run.epoch, dict(run.metrics))

    def _opened(self) -> Maps:
        if self.path is None:
            raise CheckpointError("this trainer has not trained yet: there is no run directory")
        return Maps.open(self.path)

    def _find_checkpoint(self, folder: SplitFolder, name: str) -> Path:
        candidates = [folder.checkpoint(name), Path(name)]
        for path in candidates:
            if checkpoint.is_there(path):
                return path
        known = [path.name for path in folder.checkpoints()]
        raise CheckpointError(
            f"{folder.path}: there is no checkpoint {name!r}; there are: {', '.join(known) or 'none'}"
        )

    def _evaluated_checkpoint(self, folder: SplitFolder, name: str | Path | None) -> Path:
        if name is not None:
            return self._find_checkpoint(folder, str(name))
        return folder.best() or self._find_checkpoint(folder, LAST)

    def _load(self, folder: SplitFolder, engine: Engine, run: Run, name: str | Path | None) -> None:
        path = self._evaluated_checkpoint(folder, name)
        saved, problems = checkpoint.read_newest(path)
        for problem in problems:
            folder.log(f"damaged checkpoint passed over: {problem}")
        load_state(unwrap(engine.plain), saved.model, str(path))
        run.checkpoint, run.step, run.epoch = path, saved.facts["step"], saved.facts["epoch"]

    def _plugin_rows(self) -> list[dict[str, str]]:
        from medtrain.plugins import discover

        found = {row.name: row for row in discover()}
        rows = []
        for name in self.config.run.plugins:
            row = found.get(name)
            distribution, version = (row.distribution, row.version) if row else ("", "")
            rows.append({"name": name, "distribution": distribution, "version": version})
        return rows


class _Given:
    """Objects handed to the Trainer, as one more plugin."""

    def __init__(
        self, model: nn.Module | None, loss: Callable[..., Any] | None, metrics: Sequence[Metric] | None
    ) -> None:
        self.model, self.loss, self.metrics = model, loss, metrics

    @hookimpl
    def build_model(self) -> nn.Module | None:
        return self.model

    @hookimpl
    def build_loss(self) -> Callable[..., Any] | None:
        return self.loss

    @hookimpl
    def build_metrics(self) -> list[Metric] | None:
        return None if self.metrics is None else list(self.metrics)


def checkpoint_weights(path: Path) -> dict[str, Any]:
    """The verified weights of a checkpoint folder."""
    saved, _ = checkpoint.read_newest(path)
    return saved.model
