"""Asking the plugins: a model, or everything a run consists of, from a configuration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from medtrain_plugins.standard import optimizers, schedules
from medtrain_plugins.standard.optimizers import freeze
from medtrain_plugins.standard.splits.splitting import split_groups
from medtrain_plugins.standard.transfer import Transfer
from torch import nn

from medtrain.config.sections import RunConfig, SchedulerSection
from medtrain.data.loader import epoch_size
from medtrain.data.split import Joined, Split
from medtrain.errors import ConfigError, DataError, PluginError
from medtrain.hookspecs import NONE
from medtrain.plugins import Plugins
from medtrain.protocols.dataset import Data, evaluation_of, participants_of, sample_ids_of
from medtrain.protocols.metric import Metric
from medtrain.protocols.model import unwrap
from medtrain.protocols.schedule import Plan, as_schedule
from medtrain.runtime import determinism
from medtrain.runtime.determinism import StepSeeder
from medtrain.runtime.distributed import World, replicate
from medtrain.training.engine import Engine
from medtrain.training.loaders import steps_per_epoch
from medtrain.training.monitor import Monitor
from medtrain.training.optimizers import Optimizers
from medtrain.training.stages import ScaledSchedule, StagedPlan, Stages

logger = logging.getLogger(__name__)


def build_data(config: RunConfig, plugins: Plugins, world: World) -> Data:
    """What plugins have for this configuration. The main process reads first, the rest from its cache."""
    with world.main_first():
        data: Any = plugins.ask("build_data", config=config)
    if data is None or data is NONE:
        raise PluginError(f"none of the plugins {', '.join(plugins.names) or '(none)'} has data (hook build_data)")
    answer: Data = data
    return answer


def build_split(config: RunConfig, plugins: Plugins, world: World, index: int = 0) -> Split:
    """The data of one split of the run, checked: no leak, no empty group."""
    return split_data(config, build_data(config, plugins, world), index)


def split_data(config: RunConfig, data: Data, index: int = 0) -> Split:
    """The split of given data, as the section `data` and the seed say."""
    settings = config.data
    return split_groups(
        data,
        config.run.seed,
        settings.validation_fraction,
        settings.test_fraction,
        settings.num_folds,
        settings.splits,
        index,
    )


def evaluation_groups(
    config: RunConfig,
    plugins: Plugins,
    world: World,
    given: Data | Split | None,
    recorded: dict[str, Any],
    new: bool,
    index: int = 0,
) -> Split:
    """The groups of a finished run's data, as recorded; of new data, the groups there are and `all` of them.

    given: data from Python; they are the run's own when they have the recorded members.
    """
    own = given if isinstance(given, Split) else None
    if isinstance(given, Split):
        given = given.as_data()
    if given is not None:
        if own is None and (given.train is not None or given.whole is not None):
            own = split_data(config, given, index)
        new = own is None or own.digest() != recorded["sha256"]
    if not new:
        split = own or build_split(config, plugins, world, index)
        for name, dataset in split.groups.items():
            if list(map(str, sample_ids_of(dataset))) != recorded["groups"].get(name, {}).get("samples"):
                raise DataError(f"group {name!r} is not the one this run was made with: its samples have changed")
        return Split(split.groups, split.collate, recorded["about"])
    data = given if given is not None else plugins.ask("build_data", config=config)
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
    metrics = plugins.ask("build_metrics", config=config, data=split.as_data())
    return [] if metrics is None or metrics is NONE else list(metrics)


def build_engine(
    config: RunConfig,
    plugins: Plugins,
    world: World,
    metrics: list[Metric],
    split: Split,
    monitor: Monitor,
    rebuild: Callable[[RunConfig], Split] | None = None,
) -> Engine:
    """Model, loss, optimizer and schedule on the device, freshly initialised from the seed.

    rebuild: gives the split for a stage's configuration; default: what `build_data` answers, else the same split.
    """
    settings = config.optimization
    determinism.use_deterministic_algorithms(config.computational.deterministic)
    determinism.use_backends(config.computational.benchmark, config.computational.allow_tf32)
    plain, loss = build_network(config, plugins, world)
    transfer = Transfer(config)
    if not config.fresh:
        transfer.load(config, plugins, unwrap(plain))
    freeze(unwrap(plain), settings.freeze)
    optimizer = plugins.ask("build_optimizer", config=config, model=unwrap(plain))
    if optimizer is None:
        optimizer = optimizers.build_optimizer(config, unwrap(plain))
    elif isinstance(optimizer, Mapping):
        optimizer = Optimizers(optimizer)
    transfer.prepare(unwrap(plain), optimizer)
    ema = None
    if settings.ema_decay is not None:
        averaging = torch.optim.swa_utils.get_ema_multi_avg_fn(settings.ema_decay)  # type: ignore[no-untyped-call]
        ema = torch.optim.swa_utils.AveragedModel(plain, multi_avg_fn=averaging, use_buffers=True)
    augmentation = plugins.ask("build_augmentation", config=config)
    computed: nn.Module = torch.compile(plain) if config.computational.compile else plain  # type: ignore[assignment]
    # Several optimizers take their gradients apart, which DDP does not see.
    apart = isinstance(optimizer, Optimizers)
    engine = Engine(
        model=computed if apart else replicate(computed, world, config.computational.find_unused_parameters),
        plain=plain,
        loss=loss,
        optimizer=optimizer,
        schedule=None,
        world=world,
        seeder=StepSeeder(config.run.seed, world.rank, world.device),
        augmentation=None if augmentation is NONE else augmentation,
        metrics=metrics,
        amp=choose_amp(config, world),
        ema=ema,
        memory_format=_memory_format(config, plain),
        accumulation_steps=settings.accumulation_steps,
        clip_grad_value=settings.clip_grad_value,
        clip_grad_norm=settings.clip_grad_norm,
        clip_norm_type=settings.clip_norm_type,
        skip_after=settings.max_skipped if settings.nonfinite == "skip" else None,
        stages=Stages(config, split, rebuild or (lambda staged: rebuilt_split(staged, plugins, world, split))),
        transfer=transfer,
    )
    if engine.amp is torch.float16:
        if apart:
            raise ConfigError("computational.amp: 'fp16' scales one loss, not several optimizers'; use 'bf16' or 'no'")
        engine.scaler = torch.amp.GradScaler(world.device.type)
    plan = make_plan(config, engine, split, monitor)
    engine.schedule = build_schedule(config, plugins, optimizer, plan)
    if any(stage.learning_rate_scale != 1.0 for stage in config.stages):
        engine.schedule = ScaledSchedule(engine.schedule, optimizer)
    return engine


def build_evaluator(config: RunConfig, plugins: Plugins, world: World, metrics: list[Metric]) -> Engine:
    """What an evaluation needs of an engine: model, loss and metrics, nothing that trains."""
    plain, loss = build_network(config, plugins, world)
    return Engine(
        model=plain,
        plain=plain,
        loss=loss,
        optimizer=None,
        schedule=None,
        world=world,
        seeder=StepSeeder(config.run.seed, world.rank, world.device),
        metrics=metrics,
        amp=choose_amp(config, world),
        memory_format=_memory_format(config, plain),
    )


def build_network(config: RunConfig, plugins: Plugins, world: World) -> tuple[nn.Module, Any]:
    """The model on the device and its loss."""
    model = build_module(config, plugins, world)
    loss = _required(plugins, "build_loss", config=config, model=unwrap(model))
    if isinstance(loss, nn.Module):
        loss = loss.to(world.device)
    return model, loss


def build_module(config: RunConfig, plugins: Plugins, world: World) -> nn.Module:
    """The model on the device, its fresh weights a function of the seed."""
    determinism.seed_model(config.run.seed)
    model: nn.Module = _required(plugins, "build_model", config=config)
    model = model.to(world.device)
    if (memory_format := _memory_format(config, model)) is not None:
        model = model.to(memory_format=memory_format)
    return model


def rebuilt_split(config: RunConfig, plugins: Plugins, world: World, split: Split) -> Split:
    """What `build_data` answers now; the same split when nobody answers, as with data from Python."""
    with world.main_first():
        data = plugins.ask("build_data", config=config)
    return split if data is None or data is NONE else split_data(config, data, split.index)


def make_plan(config: RunConfig, engine: Engine, split: Split, monitor: Monitor) -> Plan:
    """How long the run is, for schedulers."""
    settings, stages = config.optimization, engine.stages
    if not stages:
        steps = _epoch_steps(config, engine, len(split.groups["train"]))
        return Plan(settings.num_epochs, steps, monitor.name, monitor.mode, max_steps=settings.max_steps)
    staged = [_epoch_steps(stages.config_of(index), engine, size) for index, size in enumerate(stages.sizes())]
    total = sum(stages.epochs(index) * steps for index, steps in enumerate(staged))
    return StagedPlan(
        settings.num_epochs, staged[0], monitor.name, monitor.mode, steps=total, max_steps=settings.max_steps
    )


def _epoch_steps(config: RunConfig, engine: Engine, training_samples: int) -> int:
    global_batch = config.data.batch_size * engine.world.size
    samples = epoch_size(training_samples, global_batch, config.data.max_batches, config.data.drop_last)
    batches = -(-samples // global_batch)
    return steps_per_epoch(batches, config.optimization.accumulation_steps)


def build_schedule(config: RunConfig, plugins: Plugins, optimizer: torch.optim.Optimizer, plan: Plan) -> Any:
    """What plugins answer, or warm-up and the course of `[scheduler]`; NONE keeps the rate constant."""
    answer = plugins.ask("build_scheduler", config=config, optimizer=optimizer, plan=plan)
    if answer is None:
        return schedules.build_schedule(config.scheduler, optimizer, plan)
    if answer is NONE:
        return schedules.build_schedule(SchedulerSection.model_validate({}), optimizer, plan)
    return as_schedule(answer)


def choose_amp(config: RunConfig, world: World) -> torch.dtype | None:
    """The autocast type of `computational.amp` on this device."""
    amp, device = config.computational.amp, world.device.type
    if amp == "fp16" and device == "cpu":
        raise ConfigError("computational.amp: 'fp16' needs a GPU; use 'bf16' or 'no' on the CPU")
    if amp == "auto":
        return torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


def _memory_format(config: RunConfig, model: nn.Module) -> torch.memory_format | None:
    if config.computational.memory_format == "contiguous":
        return None
    volumes = any(parameter.dim() == 5 for parameter in model.parameters())
    return torch.channels_last_3d if volumes else torch.channels_last


def _required(plugins: Plugins, hook: str, **arguments: Any) -> Any:
    answer = plugins.ask(hook, **arguments)
    if answer is None or answer is NONE:
        raise PluginError(f"none of the plugins {', '.join(plugins.names) or '(none chosen)'} answers {hook}")
    return answer
