"""The Trainer: assemble, train, resume, evaluate, predict. The command line is a thin caller of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medtrain import assemble
from medtrain.assemble import Training
from medtrain.catalog import installed
from medtrain.config.computational import ComputationalConfig
from medtrain.config.layers import read_toml
from medtrain.config.resolution import configure
from medtrain.config.sections import OptimizationSection, RunConfig
from medtrain.data.split import Split
from medtrain.errors import CheckpointError, ConfigError, DataError, PluginError, UsageError
from medtrain.plugins import Plugins, check
from medtrain.protocols.dataset import Data
from medtrain.protocols.metric import Evaluation, Metric
from medtrain.protocols.model import load_state, unwrap
from medtrain.protocols.weights import State
from medtrain.run import Run
from medtrain.rundir import directory as maps
from medtrain.rundir.checkpoint import read_newest
from medtrain.rundir.directory import LAST, Maps, SplitFolder
from medtrain.rundir.environment import check_recorded, environment, setup
from medtrain.rundir.occupied import where_to_start
from medtrain.rundir.resolve import find_checkpoint, has_checkpoint
from medtrain.runtime import determinism, distributed
from medtrain.runtime.distributed import World
from medtrain.runtime.precision import choose_amp
from medtrain.training.engine import Engine
from medtrain.training.evaluation import evaluate
from medtrain.training.fit import Fit, TrainResult
from medtrain.training.loaders import make_loader
from medtrain.user_objects import record
from medtrain.user_objects.user_objects import Metrics, UserObjects, as_metrics, from_recipes


class Trainer:
    """Trains one configuration into one run directory, split by split.

    maps: the run directory; default `runs/<time>-<plugin>`. model: a network (trained in place, every split from the
    weights it has now), a function that makes one, or None for what plugins build. metrics: metrics, or name -> metric
    or function of (prediction, target). optimization: replaces that section of the configuration. callbacks: objects
    with hook methods. plugins: names, or objects with hook methods. loss: of two tensors, as in torch.nn (the model
    then takes and gives tensors), or of (outputs, batch). optimizer, scheduler: ready-made ones. config: a complete
    configuration, which then names the plugins. overwrite: erase a split that is there already.
    """

    def __init__(
        self,
        maps: str | Path | None = None,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        metrics: Metrics | None = None,
        optimization: OptimizationSection | None = None,
        callbacks: Sequence[Any] | None = None,
        plugins: Sequence[Any] = (),
        *,
        loss: Callable[..., Any] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        config: RunConfig | None = None,
        overwrite: bool = False,
    ) -> None:
        named = list(plugins) or (config.run.plugins if config else [])
        self.user_objects = UserObjects(model, loss, metrics, optimizer, scheduler)
        self.callbacks = list(callbacks or ())
        # "Given" is what comparisons and reports of earlier releases call these objects.
        objects = [check("Given", self.user_objects)] if self.user_objects else []
        self.plugins = Plugins.of([*named, *objects, *self.callbacks])
        if config is None:
            values: dict[str, Any] = {"Trainer": {"run": {"plugins": [n for n in named if isinstance(n, str)]}}}
            if (seed := determinism.global_seed()) is not None:
                deterministic = torch.are_deterministic_algorithms_enabled()
                seeded = {"run": {"seed": seed}, "computational": {"deterministic": deterministic}}
                values["seed_everything"] = seeded
            config = configure(self.plugins, values)
        if optimization is not None:
            config = config.model_copy(update={"optimization": optimization})
        for callback in self.callbacks:
            if hasattr(callback, "configure"):
                config = callback.configure(config)
        self.config = config
        self._asked = config.to_toml()  # plugins complete their options while they look at the data
        self.overwrite = overwrite
        self.run: Run | None = None
        self.path = Path(maps) if maps is not None else None
        self._assignments: list[str] = []

    @classmethod
    def from_maps(
        cls,
        path: str | Path,
        *,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        loss: Callable[..., Any] | None = None,
        metrics: Metrics | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
        callbacks: Sequence[Any] | None = None,
        plugins: Sequence[Any] | None = None,
        assignments: Sequence[str] = (),
    ) -> Trainer:
        """The trainer of an existing run, from its recorded configuration.

        Plugins are found by name; objects that were given when it was made are rebuilt by import path and constructor
        arguments where that is possible (`medtrain.user_objects.recipe`), and have to be given again where it is not.
        callbacks: instead of the recorded ones, [] for none. assignments: `key=value` changes, as `--set` takes them.
        """
        opened = Maps.open(Path(path))
        recorded = opened.objects()
        given = {"model": model, "loss": loss, "metrics": metrics, "optimizer": optimizer, "scheduler": scheduler}
        arguments = from_recipes(recorded, {name: value for name, value in given.items() if value is not None})
        if plugins is None:
            named: list[Any] = list(read_toml(opened.config_file)[1]["run"]["plugins"])
            named += record.rebuild_plugins(recorded.get("plugins", []), "plugins")
        else:
            named = list(plugins)
        if callbacks is None or (callbacks and not any(map(record.is_kept, callbacks))):
            callbacks = [*record.rebuild_plugins(recorded.get("callbacks", []), "callbacks"), *(callbacks or ())]
        config = configure(named, files=[opened.config_file], assignments=assignments)
        trainer = cls(path, plugins=named, callbacks=callbacks, config=config, **arguments)
        trainer.config, trainer._asked = config, config.to_toml()
        trainer._assignments = list(assignments)
        return trainer

    def train(
        self, split: Data | Split | int | None = None, computational: ComputationalConfig | None = None
    ) -> TrainResult:
        """Train one split from the first epoch to the last; one that was interrupted goes on where it stopped.

        split: data to use instead of what plugins build, or the number of a split of those. computational: replaces
        that side of the configuration for this split. Raises DataError, ConfigError and PluginError before anything
        is written; Interrupted and Preempted after a checkpoint.
        """
        given = None if isinstance(split, int) else split
        index = split if isinstance(split, int) else split.index if isinstance(split, Split) else 0
        config = self.config.with_data(given.feeding) if isinstance(given, Split) else self.config
        config = (computational.apply(config) if computational else config).model_copy(deep=True).for_split(index)
        world = distributed.join(config.computational.device)
        self.path = world.broadcast(self.path or maps.default_path(config.run.plugins, config.run.name))
        source = None
        if world.is_main:
            source = where_to_start(self.path, index, self._asked, config.to_toml(), self.overwrite)
        source = world.broadcast(source)
        parts = self._assemble(config, world, given, from_checkpoint=source is not None)
        existed = self.path.exists()
        if world.is_main:
            objects = record.describe_objects(self.user_objects, self.plugins, self.callbacks, self.config.run.plugins)
            Maps.create(self.path, self._asked, installed(self.config.run.plugins), environment(), objects)
        world.barrier()
        folder = Maps(self.path).split(index)
        try:
            return self._fit(folder, parts, source, data=given)
        except (ConfigError, DataError, PluginError):
            # A mistake that shows before the first checkpoint leaves nothing worth keeping.
            if world.is_main and not has_checkpoint(folder):
                shutil.rmtree(folder.path if existed else self.path, ignore_errors=True)
            raise

    def resume(
        self,
        split_idx: int = 0,
        checkpoint: str | Path = LAST,
        split: Data | Split | None = None,
        computational: ComputationalConfig | None = None,
    ) -> TrainResult:
        """Go on from a checkpoint of this run: `last`, `best-<metric>`, `epoch-NNNN`, `step-NNNNNNNN` or a folder.

        Data and settings are read from the run directory; data given in Python are rebuilt from it where that is
        possible. A run that ended before its first checkpoint starts over.
        """
        folder, config = self._opened(split_idx, computational)
        if split is None and (recorded := folder.inputs.data()) is not None:
            split = record.rebuild_data(recorded, split_idx)
        if isinstance(split, Split):
            config = config.with_data(split.feeding)
        check_recorded(folder.inputs.setup(), config)
        world = distributed.join(config.computational.device)
        source = None
        if checkpoint != LAST or has_checkpoint(folder):
            source = find_checkpoint(folder, checkpoint)
        elif world.is_main:
            folder.cut_history(0)
        return self._fit(folder, self._assemble(config, world, split, from_checkpoint=source is not None), source)

    def extend(self, num_epochs: int, split_idx: int = 0, **resume: Any) -> TrainResult:
        """Train a split on to `num_epochs` epochs in all; further arguments are those of `resume`."""
        self._assignments.append(f"optimization.num_epochs={num_epochs}")
        return self.resume(split_idx, **resume)

    def validate(self, split_idx: int = 0, metrics: Metrics | None = None, **options: Any) -> Evaluation:
        """Evaluate a checkpoint on the validation group of its split; options are those of `evaluate`."""
        return self.evaluate("validation", split_idx=split_idx, metrics=metrics, **options)

    def test(
        self, group: str = "test", split_idx: int = 0, metrics: Metrics | None = None, **options: Any
    ) -> Evaluation:
        """Evaluate a checkpoint on a group nobody was fitted on; options are those of `evaluate`."""
        return self.evaluate(group, split_idx=split_idx, metrics=metrics, **options)

    def evaluate(
        self,
        group: str = "test",
        *,
        split_idx: int = 0,
        checkpoint: str | Path | None = None,
        split: Data | Split | None = None,
        table: Path | None = None,
        images: Path | None = None,
        metrics: Metrics | None = None,
        details: bool = True,
        computational: ComputationalConfig | None = None,
    ) -> Evaluation:
        """Evaluate a checkpoint (default: the best, else the last) on a group of the run's data, or on new data.

        split, table, images: new data; group "all" is all of them. New data may not hold participants the model was
        fitted on; the run's own must still have the recorded members. metrics: others than the run's. details: also
        what metrics add when asked for more (confidence intervals, strata).
        """
        folder, config = self._opened(split_idx, computational)
        recorded = folder.membership()
        world = distributed.join(config.computational.device)
        config = config.with_fresh_model()
        new = split is not None or table is not None or images is not None
        if table is not None or images is not None:
            changes = {"table": table or config.data.table, "images": images}
            config = config.model_copy(update={"data": config.data.model_copy(update=changes)})
        if not new and (kept := folder.inputs.data()) is not None:
            split, new = record.rebuild_data(kept, split_idx), True
        groups = assemble.evaluation_groups(config, self.plugins, world, split, recorded, new)
        if group not in groups.groups:
            raise DataError(f"there is no group {group!r} in these data; groups: {', '.join(groups.groups)}")
        chosen = None if metrics is None else as_metrics(metrics, self.user_objects.loss)
        run, engine = assemble.assemble_evaluation(config, self.plugins, world, groups, chosen)
        run.maps = folder
        self._load(folder, engine, run, checkpoint)
        loader = make_loader(config, groups, group, engine)
        run.evaluation = result = evaluate(run, engine, self.plugins, loader, group)
        if details and world.is_main:
            for metric in engine.metrics:
                if hasattr(metric, "details"):
                    result.details |= metric.details(result.rows, config.run.seed)
        for hook in self.plugins.lifecycle("on_evaluate_end"):
            hook(run)
        self.run = run
        return result

    def report(self, out: Path | None = None) -> Path:
        """Write the last evaluation (metrics, predictions, plots, HTML report); returns the folder."""
        if self.run is None or self.run.evaluation is None or self.run.maps is None:
            raise UsageError("nothing has been evaluated yet: call evaluate first")
        folder = out or self.run.maps.evaluation(self.run.evaluation.group)
        sections = [part for answer in self.plugins.all_results("report_sections", run=self.run) for part in answer]
        written = self.plugins.first_result("write_report", run=self.run, folder=folder, sections=sections)
        if out is None and isinstance(written, Path):
            Maps(self.run.maps.path.parent).write_index()
        return folder

    def predict(
        self,
        sample: Any,
        *,
        split_idx: int = 0,
        checkpoint: str | Path | None = None,
        computational: ComputationalConfig | None = None,
    ) -> Any:
        """A table of predictions for what the plugin understands as input (a folder, a file)."""
        folder, config = self._opened(split_idx, computational)
        world = distributed.join(config.computational.device)
        config = config.with_fresh_model()
        model = unwrap(assemble.build_module(config, self.plugins, world))
        run = Run(config, model, world.device, folder, split=split_idx, is_main_process=world.is_main)
        run.world, run.amp = world, choose_amp(config.computational.amp, world.device)
        run.checkpoint = find_checkpoint(folder, checkpoint)
        load_state(run.model, read_newest(run.checkpoint)[0].model, str(run.checkpoint))
        run.model.eval()
        answer = self.plugins.first_result("predict", run=run, sample=sample)
        if answer is None:
            raise PluginError(f"none of the plugins {', '.join(self.plugins.names)} can predict (hook predict)")
        return answer

    def build_metrics(self, split_idx: int = 0) -> list[Metric]:
        """The metrics of a split that was trained, from its record alone: `Data.about` is all they see of the data."""
        folder, config = self._opened(split_idx)
        recorded = Split({}, about=folder.membership()["about"])
        return assemble.build_metrics(config.with_fresh_model(), self.plugins, recorded)

    def build_model(self, state: State | None = None, where: str = "") -> nn.Module:
        """The model on the CPU, freshly initialised from the seed, or with a state dict (`where` in messages)."""
        model = unwrap(assemble.build_module(self.config.with_fresh_model(), self.plugins, World()))
        if state is not None:
            load_state(model, state, where)
        return model

    def build_data(self, recorded: dict[str, Any] | None = None) -> Data:
        """The groups of the data. recorded: the membership of a split, as its folder keeps it, which they must have."""
        if recorded is None:
            return assemble.build_split(self.config, self.plugins, World()).as_data()
        return assemble.evaluation_groups(self.config, self.plugins, World(), None, recorded, new=False).as_data()

    def dry_run(self) -> dict[str, Any]:
        """Assemble everything and say what it is; nothing is trained or written."""
        config = self.config.model_copy(deep=True)
        world = distributed.join(config.computational.device)
        parts = self._assemble(config, world, None)
        run, split, monitor, plan = parts.run, parts.split, parts.monitor, parts.plan
        return {
            "plugins": ", ".join(self.plugins.names),
            "splits": self.count_splits(),
            "samples": {name: len(dataset) for name, dataset in split.groups.items()},
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "trainable_parameters": sum(p.numel() for p in run.model.parameters() if p.requires_grad),
            "epochs": plan.num_epochs,
            "steps_per_epoch": plan.steps_per_epoch,
            "monitor": f"{monitor.name} ({monitor.mode})",
            "device": str(world.device),
            "processes": world.size,
        }

    def count_splits(self) -> int:
        """How many splits the configuration makes of the plugins' data."""
        answer: Split = self.plugins.required("split_data", config=self.config, data=None)
        return answer.count

    def _assemble(
        self, config: RunConfig, world: World, given: Data | Split | None, from_checkpoint: bool = False
    ) -> Training:
        """The parts of a training. from_checkpoint: its weights follow from one, so no pretrained part is needed."""
        if from_checkpoint and self.user_objects.model is None:
            config = config.with_fresh_model()
        return assemble.assemble_training(config, self.plugins, world, given)

    def _fit(
        self, folder: SplitFolder, parts: Training, source: Path | None, data: Data | Split | None = None
    ) -> TrainResult:
        """Train in the locked folder of the split. data: given in Python, recorded at the start."""
        parts.run.maps = folder
        if not parts.engine.world.is_main:
            return self._run(folder, parts, source)
        with folder.locked():
            if source is None:
                split = parts.split
                folder.write_membership(split.membership(), split.digest(), split.about)
                if data is not None:
                    folder.inputs.write_data(record.describe_data(data))
            result = self._run(folder, parts, source)
        Maps(folder.path.parent).write_index()
        return result

    def _run(self, folder: SplitFolder, parts: Training, source: Path | None) -> TrainResult:
        run, world = parts.run, parts.engine.world
        fit = Fit(run, parts.engine, parts.split, self.plugins, folder)
        if source is not None:
            fit.restore(source)
        if world.is_main:
            folder.inputs.write(run.config.to_toml(), setup(run.config, world.device, world.size))
        fit.start(resumed=source is not None)
        fit.run()
        world.barrier()
        return fit.result()

    def _opened(self, number: int, computational: ComputationalConfig | None = None) -> tuple[SplitFolder, RunConfig]:
        """A split of the run directory, and the configuration to go on with."""
        if self.path is None:
            raise CheckpointError("this trainer has not trained yet: there is no run directory")
        folder = Maps.open(self.path).split(number)
        config = self.config_of(folder).for_split(number)
        return folder, computational.apply(config) if computational else config

    def config_of(self, folder: SplitFolder) -> RunConfig:
        """The configuration a split was trained with, and what was changed since."""
        if not folder.config_file.is_file():
            return self.config
        return configure(self.plugins, files=[folder.config_file], assignments=self._assignments)

    def _load(self, folder: SplitFolder, engine: Engine, run: Run, name: str | Path | None) -> None:
        path = find_checkpoint(folder, name)
        saved, problems = read_newest(path)
        for problem in problems:
            folder.log(f"damaged checkpoint passed over: {problem}")
        load_state(unwrap(engine.plain), saved.model, str(path))
        run.checkpoint, run.step, run.epoch = path, saved.facts["step"], saved.facts["epoch"]
