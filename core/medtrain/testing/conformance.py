"""The conformance kit: what a plugin author runs against a plugin, in a test or through `medtrain plugins check`."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medtrain import assemble, catalog, plugins
from medtrain.config.layers import Layers, read_toml
from medtrain.config.sections import RunConfig
from medtrain.data.split import Part, Split
from medtrain.errors import ConfigError, MedtrainError
from medtrain.hookspecs import hookimpl
from medtrain.plugins import Plugins
from medtrain.protocols.dataset import Data
from medtrain.protocols.loss import Terms, as_terms
from medtrain.protocols.schedule import Schedule
from medtrain.run import Run
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import Maps, SplitFolder
from medtrain.runtime import distributed
from medtrain.testing.toy import ToyTask, ToyVolumes
from medtrain.trainer import Trainer
from medtrain.training.engine import Engine
from medtrain.training.evaluation import evaluate_group
from medtrain.training.loaders import make_loader
from medtrain.training.step import combine, prepare

__all__ = ["Finding", "ToyTask", "ToyVolumes", "assert_conforms", "check_plugin"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    what: str
    ok: bool
    detail: str = ""


def check_plugin(plugin: str | Any, *, train: bool = True) -> list[Finding]:
    """Check a plugin (a name, or an object with hooks) the way medtrain will use it; the first fault is the last.

    Its hooks, docstring and options; with `train` also its parts on one batch, and two epochs on the CPU that are
    resumed from the middle of the second, after which weights, state and history must be the same. The toy task
    stands in for what a plugin without data does not build. A plugin with data is trained when it builds model and
    loss too, with its preset `demo` if it has one, on the first three batches of each group.
    """
    checks = _Checklist()
    with suppress(_Stop):
        with checks.item("hooks are known and take known arguments"):
            loaded = _load(plugin)
        with checks.item("a docstring says what it is"):
            if not (inspect.getdoc(loaded.plugin) or "").strip():
                raise _Fault("there is none; its first line is the summary in `medtrain plugins list`")
        with checks.item("options have defaults and descriptions, unknown ones are refused"):
            _check_options(loaded)
        owns_data = "build_data" in loaded.hooks
        if train and (not owns_data or {"build_model", "build_loss"} <= loaded.hooks.keys()):
            floor = [] if owns_data else ["medtrain.testing:ToyTask"]
            with tempfile.TemporaryDirectory() as folder:
                config, data = _check_parts([*floor, loaded], loaded, checks)
                again = _load(plugin)  # a plugin that is a class comes back without its state, as after a crash
                _check_run([*floor, loaded], [*floor, again], config, data, Path(folder) / "run", checks)
    return checks.findings


def assert_conforms(plugin: str | Any) -> None:
    """`check_plugin` as an assertion, for a plugin's own test suite."""
    failed = [f"{finding.what}: {finding.detail}" for finding in check_plugin(plugin) if not finding.ok]
    assert not failed, "; ".join(failed)


class _Fault(Exception):
    """What is wrong, in words."""


class _Stop(Exception):
    """Something failed, and what follows would only fail with it."""


@dataclass
class _Checklist:
    findings: list[Finding] = field(default_factory=list)

    @contextmanager
    def item(self, what: str) -> Iterator[None]:
        """One finding; it failed when the block raises. Raises _Stop then."""
        try:
            yield
        except Exception as error:  # a stranger's code may raise anything
            in_words = isinstance(error, (_Fault, MedtrainError))
            self.findings.append(Finding(what, False, str(error) if in_words else f"{type(error).__name__}: {error}"))
            raise _Stop from error
        self.findings.append(Finding(what, True))


def _load(plugin: str | Any) -> plugins.LoadedPlugin:
    return plugins.load(plugin) if isinstance(plugin, str) else plugins.check(type(plugin).__name__, plugin)


def _check_options(loaded: plugins.LoadedPlugin) -> None:
    model = loaded.options()
    if model is None:
        return
    Layers().build({loaded.name: model})
    if bare := [name for name, option in model.model_fields.items() if not option.description]:
        raise _Fault(f"no description: {', '.join(bare)}; `medtrain plugins info` shows it")
    try:
        Layers({"plugins": {loaded.name: {"no_such_option": 1}}}).build({loaded.name: model})
    except ConfigError:
        return
    raise _Fault("a misspelt option would be ignored; derive the options from medtrain.config.SectionModel")


def _check_parts(chosen: list[Any], loaded: plugins.LoadedPlugin, checks: _Checklist) -> tuple[RunConfig, Data]:
    """Everything a run consists of, on one batch; returns configuration and data of the run to come."""
    with checks.item("data, model, loss, optimizer, schedule and metrics can be built"):
        layers = Layers()
        if demo := catalog.presets(loaded.name).get("demo"):
            layers.add(read_toml(demo)[1], "preset demo")
        settings = {"computational": {"device": "cpu"}, "optimization": {"num_epochs": 2}, "data": {"num_folds": 0}}
        layers.add(settings, "check")
        config = layers.build({loaded.name: loaded.options()})
        world = distributed.join("cpu")
        data = _few(assemble.build_split(config, Plugins.of(chosen), world), 3 * config.data.batch_size)
        parts = assemble.assemble_training(config, Plugins.of(chosen), world, data)
        run, engine, split = parts.run, parts.engine, parts.split
        _check_schedule(engine.schedule)
    batch = prepare(engine, next(make_loader(config, split, "train", engine).epoch()))
    with checks.item("model(batch) returns a dict"):
        outputs = _outputs(engine, batch)
    with checks.item("loss(outputs, batch) gives finite scalar terms"):
        terms = _terms(engine, outputs, batch)
    with checks.item("gradients are finite and reach every trainable parameter"):
        combine(terms, None, engine.world).backward()  # type: ignore[no-untyped-call]
        _check_gradients(engine, config.computational.find_unused_parameters)
    if "validation" in split.groups and "evaluate" not in loaded.hooks:
        with checks.item("metrics return the values they name"):
            loader = make_loader(config, split, "validation", engine)
            rows = evaluate_group(run, engine, loader, "validation").rows
            for metric in engine.metrics:
                if set(values := metric.compute(rows)) != set(metric.names):
                    raise _Fault(f"{type(metric).__name__} names {list(metric.names)} but returns {list(values)}")
    steps = parts.plan.steps_per_epoch
    config.checkpoint.every_n_steps = steps + steps // 2
    return config, data


class _First(Part):
    """The first samples of a dataset; whatever else a plugin's hooks ask of it is the whole dataset's."""

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # not there yet while a loader process unpickles it
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _few(split: Split, count: int) -> Data:
    groups = {name: _First(dataset, range(min(count, len(dataset)))) for name, dataset in split.groups.items()}
    return Data(**groups, collate=split.collate, about=split.about)


def _check_schedule(schedule: Any) -> None:
    needed = ["after_step", "after_epoch", "state_dict", "load_state_dict"]
    if isinstance(schedule, Schedule):
        schedule, needed = schedule.scheduler, ["step", "state_dict", "load_state_dict"]
    if missing := [name for name in needed if not callable(getattr(schedule, name, None))]:
        raise _Fault(
            f"build_scheduler answers {type(schedule).__name__}, which has no {', '.join(missing)}; "
            "return a torch scheduler or a medtrain.Schedule"
        )


def _outputs(engine: Engine, batch: dict[str, Any]) -> Mapping[str, Any]:
    engine.seeder(0)
    try:
        outputs = engine.model.train()(batch)
    except KeyError as error:
        raise _Fault(f"it asks for {error}; the batch has {', '.join(batch)}") from None
    if not isinstance(outputs, Mapping):
        raise _Fault(f"it returns {type(outputs).__name__}; medtrain.TensorModel adapts a plain network")
    return outputs


def _terms(engine: Engine, outputs: Mapping[str, Any], batch: dict[str, Any]) -> Terms:
    result = engine.loss(outputs, batch)
    try:
        terms = as_terms(result, len(batch["sample_id"]), engine.world.device)
    except (TypeError, ValueError):
        raise _Fault("it returns neither a scalar tensor, nor a (sum, weight) pair, nor a dict of them") from None
    for name, (total, weight, _) in terms.items():
        if total.dim() or weight.dim():
            shapes = f"{tuple(total.shape)} and {tuple(weight.shape)}"
            raise _Fault(f"term {name!r}: sum and weight have shapes {shapes}, both must be scalars")
        if not total.isfinite() or not 0 <= float(weight) < math.inf:
            raise _Fault(f"term {name!r}: the sum is {float(total.detach())}, the weight {float(weight)}")
    if weigh := getattr(engine.loss, "weights", None):
        announced = {name: float(weight) for name, weight in weigh(batch).items()}
        real = {name: float(term.weight) for name, term in terms.items()}
        if announced.keys() != real.keys() or not all(math.isclose(announced[k], real[k], rel_tol=1e-5) for k in real):
            raise _Fault(f"weights(batch) announces {announced}, the loss has {real}")
    return terms


def _check_gradients(engine: Engine, may_be_unused: bool) -> None:
    gradients = {name: p.grad for name, p in engine.plain.named_parameters() if p.requires_grad}
    wild = [name for name, gradient in gradients.items() if gradient is not None and not gradient.isfinite().all()]
    unused = [name for name, gradient in gradients.items() if gradient is None]
    if wild:
        raise _Fault(f"not finite: {', '.join(wild[:5])}")
    if len(unused) == len(gradients) or (unused and not may_be_unused):
        raise _Fault(f"none at {', '.join(unused[:5])}; freeze it, or set computational.find_unused_parameters")


def _check_run(
    chosen: list[Any], again: list[Any], config: RunConfig, data: Data, path: Path, checks: _Checklist
) -> None:
    """Two epochs, and the same from the middle of the second on."""
    rates = _Rates()
    with checks.item("two epochs train, with sane learning rates, and can be evaluated"):
        trainer = Trainer(path, plugins=chosen, callbacks=[rates], config=config)
        if (epochs := trainer.train(data).epochs) != 2:
            raise _Fault(f"the run ended after epoch {epochs}")
        if not any(rates.seen) or not all(0 <= rate < math.inf for rate in rates.seen):
            raise _Fault(f"the learning rates are {rates.seen[:8]}")
        if data.test is not None:
            trainer.evaluate("test", split=Data(test=data.test, collate=data.collate))
    with checks.item("a resumed run ends with the same weights, state and history"):
        folder = Maps.open(path).split(0)
        before = _outcome(folder)
        Trainer(path, plugins=again, config=config).resume(0, f"step-{config.checkpoint.every_n_steps:08d}", data)
        after = _outcome(folder)
        if changed := [name for name in before if before[name] != after[name]]:
            raise _Fault(f"not the same: {', '.join(changed)}; keep what decides in state_dict and load_state_dict")


class _Rates:
    """Keeps the learning rates a run goes through."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    @hookimpl
    def on_step_end(self, run: Run) -> None:
        assert run.optimizer is not None
        self.seen += [float(group["lr"]) for group in run.optimizer.param_groups]


def _outcome(folder: SplitFolder) -> dict[str, Any]:
    """What a finished run left, part by part; tensors by their checksum."""
    last = folder.checkpoint("last")
    state = json.loads((last / checkpoint.STATE).read_text(encoding="utf-8"))
    weights = {
        name: hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy().tobytes()).digest()
        for name, tensor in checkpoint.load_model_file(last / checkpoint.MODEL).items()
    }
    tensors = {"weights": weights, "tensors of the state": checkpoint.read_manifest(last)["sha256"][checkpoint.TENSORS]}
    return tensors | {f"state of {name}": value for name, value in state.items()} | {"history": folder.history()}
