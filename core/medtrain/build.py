"""Asking the plugins: a model, or everything a run consists of, from a configuration."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from medtrain import checkpoint, defaults, determinism
from medtrain.config import Layers, RunConfig, SchedulerSection
from medtrain.data import Data, Joined, Loader, Split, participants_of, sample_ids_of, split_groups
from medtrain.data.contract import evaluation_of
from medtrain.data.loader import epoch_size, sampling_weights
from medtrain.defaults import Plan
from medtrain.determinism import StepSeeder
from medtrain.distributed import World, replicate
from medtrain.errors import ConfigError, DataError, PluginError, nearest
from medtrain.hookspecs import NONE
from medtrain.loop import Engine
from medtrain.metrics import Metric
from medtrain.model import unwrap
from medtrain.optimizers import Optimizers, freeze
from medtrain.plugins import Plugins
from medtrain.schedules import as_schedule
from medtrain.stages import ScaledSchedule, StagedPlan, Stages
from medtrain.transfer import Transfer
from medtrain.weights import Weights, checkpoint_of, load_state
from medtrain.weights import read as read_weights

logger = logging.getLogger(__name__)


@dataclass
class Monitor:
    """The value that decides: best checkpoint, plateau, early stopping."""

    name: str
    mode: Literal["max", "min"]


def build_model(plugin: str, weights: str | Path | Sequence[str | Path] | None = None, **options: Any) -> nn.Module:
    """A plugin's model, freshly initialised or with weights.

    plugin: its name. weights: what `medtrain weights import` reads: safetensors, a state dict, a run directory or
    checkpoint, a file of another project that the plugin knows, or the several files it is spread over.
    options: those of `[plugins.<plugin>]`; options recorded with the weights fill in those that are not given.
    Raises ConfigError for unknown options and files that are not there or no weights, PluginError for unknown
    plugins, and CheckpointError when weights are damaged, refused, or do not fit.
    """
    layers = Layers()
    layers.add({"plugins": {plugin: options}}, "build_model")
    paths = [] if weights is None else [weights] if isinstance(weights, str | Path) else list(weights)
    return build_with_weights(plugin, layers, [Path(path) for path in paths])[0]


def build_with_weights(plugin: str, given: Layers, paths: Sequence[Path]) -> tuple[nn.Module, Weights]:
    """A plugin's model, and what was read from the files (none: nothing) and loaded into it.

    given: options, which win over those recorded with the weights. In the answer, `options` are both together.
    """
    plugins = Plugins.of([plugin])
    named = {"run": {"plugins": [plugin]}}
    given.add(named, "medtrain")
    found = Weights({})
    if paths:
        found = read_weights(plugins, plugin, _provisional(given, plugins, named), paths)
        given = _fill_in(plugin, given, found, ", ".join(map(str, paths)))
    config = given.build(plugins.options()).with_fresh_model()
    determinism.seed_model(config.run.seed)
    model: nn.Module = unwrap(_required(plugins, "build_model", config=config))
    if paths:
        load_state(model, found.state, ", ".join(map(str, paths)))
    return model, found


def _provisional(given: Layers, plugins: Plugins, named: dict[str, Any]) -> RunConfig:
    """The given options, or the defaults when the given ones only make sense with those recorded with the weights."""
    try:
        return given.build(plugins.options()).with_fresh_model()
    except ConfigError:
        bare = Layers()
        bare.add(named, "medtrain")
        return bare.build(plugins.options()).with_fresh_model()


def _fill_in(plugin: str, given: Layers, found: Weights, where: str) -> Layers:
    """The given options over those recorded with the weights, which are told where they differ."""
    table = given.values.get("plugins")
    options = table.get(plugin) if isinstance(table, dict) else None
    options = options if isinstance(options, dict) else {}
    for name, value in options.items():
        recorded = found.options.get(name, value)
        if json.dumps(recorded, default=str) != json.dumps(value, default=str):
            logger.warning("%s=%s as given, though the weights were made with %s", name, value, recorded)
    both = Layers()
    both.add({"plugins": {plugin: found.options}}, where)
    both.add(given.values, "")
    both.sources |= given.sources
    found.options = {**found.options, **options}
    return both


def weights_file(where: str, key: str) -> Path:
    """The weights a configuration key names: a file, or a run directory's best (else last) model."""
    path = Path(where)
    if path.is_dir():
        return checkpoint_of(path) / checkpoint.MODEL
    if not path.is_file():
        raise ConfigError(f"{key}: there is no file {where!r}")
    return path


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
        optimizer = defaults.build_optimizer(config, unwrap(plain))
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


def make_loader(config: RunConfig, split: Split, group: str, engine: Engine) -> Loader:
    """The loader of a group: shuffled, augmented and seeded for training, in dataset order otherwise."""
    settings, training, on_gpu = config.data, group == "train", engine.world.device.type == "cuda"
    batch_size, workers = settings.batch_size, settings.num_workers
    if not training:
        batch_size = settings.evaluation_batch_size or batch_size
        workers = workers if settings.evaluation_num_workers is None else settings.evaluation_num_workers
    dataset = split.groups[group]
    return Loader(
        dataset,
        batch_size,
        seed=config.run.seed,
        shuffle=training and settings.sampling != "sequential",
        training=training,
        weights=sampling_weights(dataset, settings.sampling) if training else None,
        max_batches=settings.max_batches if training else None,
        drop_last=training and settings.drop_last,
        augmentation=engine.augmentation if training else None,
        collate_fn=split.collate,
        num_workers=workers,
        rank=engine.world.rank,
        world=engine.world.size,
        pin_memory=on_gpu if settings.pin_memory is None else settings.pin_memory and on_gpu,
        prefetch_factor=settings.prefetch_factor if workers else None,
        persistent_workers=settings.persistent_workers and workers > 0,
    )


def rebuilt_split(config: RunConfig, plugins: Plugins, world: World, split: Split) -> Split:
    """What `build_data` answers now; the same split when nobody answers, as with data from Python."""
    with world.main_first():
        data = plugins.ask("build_data", config=config)
    return split if data is None or data is NONE else split_data(config, data, split.index)


def steps_per_epoch(batches: int, accumulation_steps: int) -> int:
    """Optimizer steps in an epoch: the last window is stepped however short it is."""
    return -(-batches // accumulation_steps)


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
        return defaults.build_schedule(config.scheduler, optimizer, plan)
    if answer is NONE:
        return defaults.build_schedule(SchedulerSection.model_validate({}), optimizer, plan)
    return as_schedule(answer)


def choose_monitor(config: RunConfig, metrics: list[Metric], name: str = "") -> Monitor:
    """The monitored value and its direction; ConfigError names what there is to choose from."""
    modes = modes_of(metrics)
    known = [value for value in modes if value != "loss"]
    if not name:
        stopping = config.early_stopping.monitor
        _check_names("early_stopping.monitor", [stopping] if isinstance(stopping, str) else stopping, modes)
        _check_names("checkpoint.metrics", config.checkpoint.metrics, modes)
    name = name or config.validation.monitor or next(iter(known), "loss")
    name = name.removeprefix("validation/")
    _check_names("validation.monitor", [name], modes)
    return Monitor(name, modes[name])


def modes_of(metrics: list[Metric]) -> dict[str, Literal["max", "min"]]:
    """Value name -> direction, of the loss and of every metric."""
    return {"loss": "min", **{value: metric.mode for metric in metrics for value in metric.names}}


def _check_names(key: str, names: Sequence[str], modes: dict[str, Any]) -> None:
    for name in names:
        if name and name.removeprefix("validation/") not in modes:
            raise ConfigError(f"{key}: there is no value {name!r}{nearest(name, modes)}; known: {', '.join(modes)}")


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
