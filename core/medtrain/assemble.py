"""From a configuration to the parts of a training or an evaluation: what the plugins build, put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medtrain.config.sections import (
    ComputationalSection,
    DataSection,
    OptimizationSection,
    RunConfig,
    SchedulerSection,
)
from medtrain.data.loader import epoch_size
from medtrain.data.split import Joined, Split
from medtrain.errors import ConfigError, DataError, PluginError
from medtrain.hookspecs import NONE
from medtrain.plugins import Plugins
from medtrain.protocols.dataset import Data, evaluation_of, participants_of, sample_ids_of
from medtrain.protocols.metric import Metric
from medtrain.protocols.model import unwrap
from medtrain.protocols.schedule import Plan, as_schedule
from medtrain.protocols.weights import Weights
from medtrain.run import Run
from medtrain.runtime import determinism
from medtrain.runtime.determinism import StepSeeder
from medtrain.runtime.distributed import World, replicate
from medtrain.runtime.precision import choose_amp
from medtrain.training.engine import Engine
from medtrain.training.loaders import steps_per_epoch
from medtrain.training.monitor import Monitor, choose_monitor, modes_of
from medtrain.training.optimizers import Optimizers, TrainableParameters, scale_rates
from medtrain.training.stages import ScaledSchedule, StagedPlan, Stages
from medtrain.weights import saved_model


@dataclass(frozen=True)
class Training:
    """The parts of a training."""

    run: Run
    engine: Engine
    split: Split
    monitor: Monitor
    plan: Plan


def assemble_training(config: RunConfig, plugins: Plugins, world: World, given: Data | Split | None) -> Training:
    """Data, metrics, model, loss, optimizer and schedule of split `config.split`, freshly initialised from the seed.

    given: data of a Python user, instead of what plugins build.
    """
    split = given.checked() if isinstance(given, Split) else build_split(config, plugins, world, given)
    metrics = build_metrics(config, plugins, split)
    monitor = choose_monitor(config, metrics)
    # Data of a Python user are the same in all stages.
    rebuild = (lambda staged: rebuilt_split(staged, plugins, world, split)) if given is None else (lambda staged: split)
    engine = build_engine(config, plugins, world, metrics, Stages(config, split, rebuild))
    plan = make_plan(config, engine.stages, world.size, split, monitor)
    engine.build_schedule = partial(build_schedule, config, plugins, engine.optimizer, plan)
    engine.schedule = engine.build_schedule()
    run = Run(
        config=config,
        model=unwrap(engine.plain),
        device=world.device,
        data=split.as_data(),
        optimizer=engine.optimizer,
        schedule=engine.schedule,
        loss=engine.loss,
        split=config.split,
        num_epochs=config.optimization.num_epochs,
        is_main_process=world.is_main,
        modes=modes_of(metrics),
        world=world,
        amp=engine.amp,
        monitor=monitor.name,
    )
    return Training(run, engine, split, monitor, plan)


def assemble_evaluation(
    config: RunConfig, plugins: Plugins, world: World, groups: Split, metrics: list[Metric] | None
) -> tuple[Run, Engine]:
    """Model, loss and metrics for groups of data, nothing that trains. metrics: instead of those that plugins build."""
    plain, loss = build_network(config, plugins, world)
    engine = Engine(
        model=plain,
        plain=plain,
        loss=loss,
        optimizer=None,
        schedule=None,
        world=world,
        seeder=StepSeeder(config.run.seed, world.rank, world.device),
        metrics=build_metrics(config, plugins, groups) if metrics is None else metrics,
        amp=choose_amp(config.computational.amp, world.device),
        memory_format=_memory_format(config.computational, plain),
    )
    run = Run(config, unwrap(plain), world.device, data=groups.as_data(), loss=loss, split=config.split)
    run.is_main_process, run.modes, run.amp, run.world = world.is_main, modes_of(engine.metrics), engine.amp, world
    return run, engine


def build_data(config: RunConfig, plugins: Plugins, world: World) -> Data | None:
    """What plugins have for this configuration. The main process reads first, the rest from its cache."""
    with world.main_first():
        data: Any = plugins.first_result("build_data", config=config)
    return None if data is NONE else data


def build_split(config: RunConfig, plugins: Plugins, world: World, given: Data | None = None) -> Split:
    """Split `config.split` of the given data or those that plugins build, checked: no leak, no empty group."""
    data = build_data(config, plugins, world) if given is None else given
    if data is None:
        raise PluginError(f"none of the plugins {', '.join(plugins.names) or '(none)'} has data (hook build_data)")
    split: Split = plugins.required("split_data", config=config, data=data)
    return split


def rebuilt_split(config: RunConfig, plugins: Plugins, world: World, split: Split) -> Split:
    """The split of what `build_data` answers now; the same split when nobody answers, as with data from Python."""
    data = build_data(config, plugins, world)
    return split if data is None else build_split(config, plugins, world, data)


def evaluation_groups(
    config: RunConfig, plugins: Plugins, world: World, given: Data | Split | None, recorded: dict[str, Any], new: bool
) -> Split:
    """The groups of a finished run's data, as recorded; of new data, the groups there are and `all` of them.

    given: data from Python; they are the run's own when they have the recorded members.
    """
    own = given if isinstance(given, Split) else None
    if isinstance(given, Split):
        given = given.as_data()
    if given is not None:
        if own is None and (given.train is not None or given.whole is not None):
            own = build_split(config, plugins, world, given)
        new = own is None or own.digest() != recorded["sha256"]
    if not new:
        split = own or build_split(config, plugins, world)
        for name, dataset in split.groups.items():
            if list(map(str, sample_ids_of(dataset))) != recorded["groups"].get(name, {}).get("samples"):
                raise DataError(f"group {name!r} is not the one this run was made with: its samples have changed")
        return Split(split.groups, split.collate, recorded["about"])
    data = given if given is not None else plugins.first_result("build_data", config=config)
    groups = {name: evaluation_of(dataset) for name, dataset in (data.groups() or {"whole": data.whole}).items()}
    groups["all"] = Joined(list(groups.values()))
    fitted = {p for name in ("train", "validation") for p in recorded["groups"].get(name, {}).get("participants", [])}
    if known := sorted(fitted & set(map(str, participants_of(groups["all"]) or []))):
        raise DataError(
            f"{len(known)} participants of these data were used to fit this model, for example {known[0]!r}; "
            "leave them out"
        )
    return Split(groups, data.collate, recorded["about"])


def build_metrics(config: RunConfig, plugins: Plugins, split: Split) -> list[Metric]:
    """The metrics of the run; none is a legitimate answer."""
    metrics = plugins.first_result("build_metrics", config=config, data=split.as_data())
    return [] if metrics is None or metrics is NONE else list(metrics)


def build_engine(config: RunConfig, plugins: Plugins, world: World, metrics: list[Metric], stages: Stages) -> Engine:
    """Model, loss and optimizer on the device; the schedule is still to come."""
    settings, computational = config.optimization, config.computational
    determinism.use_deterministic_algorithms(computational.deterministic)
    determinism.use_backends(computational.benchmark, computational.allow_tf32)
    plain, loss = build_network(config, plugins, world)
    trainable = build_trainable(config, plugins, unwrap(plain))
    optimizer = trainable.optimizer
    augmentation = plugins.first_result("build_augmentation", config=config)
    computed: nn.Module = torch.compile(plain) if computational.compile else plain  # type: ignore[assignment]
    # Several optimizers take their gradients apart, which DDP does not see.
    apart = isinstance(optimizer, Optimizers)
    amp = choose_amp(computational.amp, world.device)
    if apart and amp is torch.float16:
        raise ConfigError("computational.amp: 'fp16' scales one loss, not several optimizers'; use 'bf16' or 'no'")
    return Engine(
        model=computed if apart else replicate(computed, world, computational.find_unused_parameters),
        plain=plain,
        loss=loss,
        optimizer=optimizer,
        schedule=None,
        world=world,
        seeder=StepSeeder(config.run.seed, world.rank, world.device),
        augmentation=None if augmentation is NONE else augmentation,
        metrics=metrics,
        amp=amp,
        scaler=torch.amp.GradScaler(world.device.type) if amp is torch.float16 else None,
        ema=build_ema(settings, plain),
        memory_format=_memory_format(computational, plain),
        accumulation_steps=settings.accumulation_steps,
        clip_grad_value=settings.clip_grad_value,
        clip_grad_norm=settings.clip_grad_norm,
        clip_norm_type=settings.clip_norm_type,
        skip_after=settings.max_skipped if settings.nonfinite == "skip" else None,
        stages=stages,
        trainable=trainable,
    )


def build_trainable(config: RunConfig, plugins: Plugins, model: nn.Module) -> TrainableParameters:
    """The parameters that train, and their optimizer."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    plugins.all_results(
        "prepare_model", config=config, model=model, read_weights=partial(read_weights, config, plugins)
    )
    # What was frozen here may train later: the optimizer is built with it. What optimization.freeze names never does.
    never = config.optimization.freeze
    held = [p for name, p in trained if not p.requires_grad and not any(fnmatchcase(name, one) for one in never)]
    for parameter in held:
        parameter.requires_grad_(True)
    build = partial(build_optimizer, config, plugins, model)
    trainable = TrainableParameters(model, build(), build)
    trainable.hold(held)
    return trainable


def build_optimizer(config: RunConfig, plugins: Plugins, model: nn.Module) -> Any:
    """What plugins answer, with the rates of `transfer.lr_scale`."""
    optimizer = plugins.required("build_optimizer", config=config, model=model)
    if isinstance(optimizer, Mapping):
        optimizer = Optimizers(optimizer)
    scale_rates(config.transfer, model, optimizer)
    return optimizer


def read_weights(config: RunConfig, plugins: Plugins, path: Path) -> Weights:
    """Weights in a file of any origin that the plugins know, for the model of the plugin that builds it."""
    builders = [plugin.name for plugin in plugins.loaded if "build_model" in plugin.hooks]
    plugin = builders[-1] if builders else ""
    return saved_model.read_weights(plugins, plugin, config.with_fresh_model(), [path])


def build_ema(settings: OptimizationSection, model: nn.Module) -> torch.optim.swa_utils.AveragedModel | None:
    """The moving average of the weights, when one is asked for."""
    if settings.ema_decay is None:
        return None
    averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=averaging, use_buffers=True)


def build_network(config: RunConfig, plugins: Plugins, world: World) -> tuple[nn.Module, Any]:
    """The model on the device and its loss."""
    model = build_module(config, plugins, world)
    loss = plugins.required("build_loss", config=config, model=unwrap(model))
    if isinstance(loss, nn.Module):
        loss = loss.to(world.device)
    return model, loss


def build_module(config: RunConfig, plugins: Plugins, world: World) -> nn.Module:
    """The model on the device, its fresh weights a function of the seed."""
    determinism.seed_model(config.run.seed)
    model: nn.Module = plugins.required("build_model", config=config)
    model = model.to(world.device)
    if (memory_format := _memory_format(config.computational, model)) is not None:
        model = model.to(memory_format=memory_format)
    return model


def make_plan(config: RunConfig, stages: Stages, processes: int, split: Split, monitor: Monitor) -> Plan:
    """How long the run is, for schedulers."""
    settings = config.optimization

    def epoch_steps(data: DataSection, training_samples: int) -> int:
        global_batch = data.batch_size * processes
        samples = epoch_size(training_samples, global_batch, data.max_batches, data.drop_last)
        return steps_per_epoch(-(-samples // global_batch), settings.accumulation_steps)

    if not stages:
        steps = epoch_steps(config.data, len(split.groups["train"]))
        return Plan(settings.num_epochs, steps, monitor.name, monitor.mode, max_steps=settings.max_steps)
    staged = [epoch_steps(stages.config_of(index).data, size) for index, size in enumerate(stages.sizes())]
    total = sum(stages.epochs(index) * steps for index, steps in enumerate(staged))
    return StagedPlan(
        settings.num_epochs, staged[0], monitor.name, monitor.mode, steps=total, max_steps=settings.max_steps
    )


def build_schedule(config: RunConfig, plugins: Plugins, optimizer: Any, plan: Plan) -> Any:
    """What plugins answer; NONE keeps the rate constant."""
    answer = plugins.first_result("build_scheduler", config=config, optimizer=optimizer, plan=plan)
    if answer is NONE:
        constant = config.model_copy(update={"scheduler": SchedulerSection.model_validate({})})
        answer = plugins.default_result("build_scheduler", config=constant, optimizer=optimizer, plan=plan)
    schedule = as_schedule(answer)
    scaled = any(stage.learning_rate_scale != 1.0 for stage in config.stages)
    return ScaledSchedule(schedule, optimizer) if scaled else schedule


def _memory_format(settings: ComputationalSection, model: nn.Module) -> torch.memory_format | None:
    if settings.memory_format == "contiguous":
        return None
    volumes = any(parameter.dim() == 5 for parameter in model.parameters())
    return torch.channels_last_3d if volumes else torch.channels_last
