"""The configuration of a run: typed sections, and how layers of TOML and flags become one.

Layers, the later winning: core defaults < plugin presets < files < `--set` and flags. Every key remembers where
its value came from, so that an error can name file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tomli
import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from medtrain.errors import ConfigError, first_lines, nearest

Key = tuple[str, ...]


class SectionModel(BaseModel):
    """Base of every section and of plugins' options: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class RunSection(SectionModel):
    """Which plugins, and what the run is called."""

    plugins: list[str] = Field([], description="plugins, in command-line order")
    preset: str = Field("", description="preset the run started from")
    name: str = Field("", description="appended to the run directory's name")
    seed: int = Field(0, ge=0, description="all randomness of the run follows from it")


class DataSection(SectionModel):
    """Where the data are and how they are fed."""

    table: Path | None = Field(None, description="table of samples (what kind, the plugin says)")
    images: Path | None = Field(None, description="folder of the images the table names")
    batch_size: int = Field(8, ge=1, description="samples per process and step")
    evaluation_batch_size: int | None = Field(None, ge=1, description="the same outside training")
    num_workers: int = Field(0, ge=0, description="loader processes; 0 loads in the training process")
    sampling: Literal["shuffle", "class_balanced"] = Field(
        "shuffle", description="class_balanced: draw training samples with replacement, every class equally often"
    )
    max_batches: int | None = Field(None, ge=1, description="an epoch ends after this many training batches")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="when the core splits one dataset")
    test_fraction: float = Field(0.1, ge=0, lt=1, description="when the core splits one dataset")


class ParameterGroup(SectionModel):
    """Parameters whose name matches `pattern` (shell style) train at `lr_scale` times the learning rate."""

    pattern: str
    lr_scale: float = Field(1.0, ge=0)
    weight_decay: float | None = Field(None, ge=0)


class OptimizationSection(SectionModel):
    """The optimizer and its steps."""

    num_epochs: int = Field(10, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    groups: list[ParameterGroup] = Field([], description="first matching group wins")
    accumulation_steps: int = Field(1, ge=1, description="batches per optimizer step")
    evaluation_interval: int = Field(1, ge=0, description="epochs between evaluations; 0: never")
    clip_grad_norm: float | None = Field(None, gt=0, description="largest gradient norm")
    clip_norm_type: float = Field(2.0, gt=0)
    ema_decay: float | None = Field(None, gt=0, lt=1, description="evaluate a moving average of the weights")


class SchedulerSection(SectionModel):
    """Linear warm-up in optimizer steps, then one of four courses."""

    name: Literal["none", "plateau", "cosine", "step"] = "none"
    warmup_steps: int = Field(0, ge=0)
    factor: float = Field(0.5, gt=0, lt=1, description="plateau, step: what the rate is multiplied with")
    patience: int = Field(5, ge=0, description="plateau: epochs without improvement that are borne")
    step_size: int = Field(10, ge=1, description="step: epochs between two multiplications")
    min_lr: float = Field(0.0, ge=0, description="plateau, cosine, step: floor of the largest group's rate")


class ValidationSection(SectionModel):
    """What the validation group decides."""

    monitor: str = Field("", description="value that picks the best model; default: the plugin's first metric")


class CheckpointSection(SectionModel):
    """When the state of the run is written, besides `last` at the end of the run."""

    every_n_epochs: int = Field(0, ge=0, description="keep `epoch-NNNN` every N epochs; 0: never")
    every_n_steps: int = Field(0, ge=0, description="keep `step-NNNNNNNN` every N optimizer steps; 0: never")
    keep_last_n: int | None = Field(None, ge=1, description="of the periodic ones, keep the newest N")
    last_every_n_epochs: int = Field(1, ge=0, description="renew `last` every N epochs; 0: only at the end")
    best: bool = Field(True, description="keep `best-<monitor>`")


class EarlyStoppingSection(SectionModel):
    """Stop when the monitored value no longer improves."""

    patience: int | None = Field(None, ge=1, description="evaluations without improvement; none: never stop")
    min_delta: float = Field(0.0, ge=0)
    monitor: str = Field("", description="default: `validation.monitor`")
    mode: Literal["auto", "min", "max"] = "auto"


class ComputationalSection(SectionModel):
    """How the arithmetic is done."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    amp: Literal["auto", "no", "bf16", "fp16"] = Field("auto", description="auto: bf16 on CUDA, none on CPU")
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    deterministic: bool = Field(False, description="ask torch for deterministic operations")
    compile: bool = Field(False, description="torch.compile the model")
    find_unused_parameters: bool = Field(False, description="DDP: for models with parts a batch may skip")


class RunConfig(SectionModel):
    """Everything a run depends on besides its data."""

    run: RunSection = Field(default_factory=RunSection)  # type: ignore[arg-type]
    data: DataSection = Field(default_factory=DataSection)  # type: ignore[arg-type]
    optimization: OptimizationSection = Field(default_factory=OptimizationSection)  # type: ignore[arg-type]
    scheduler: SchedulerSection = Field(default_factory=SchedulerSection)  # type: ignore[arg-type]
    validation: ValidationSection = Field(default_factory=ValidationSection)  # type: ignore[arg-type]
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)  # type: ignore[arg-type]
    early_stopping: EarlyStoppingSection = Field(default_factory=EarlyStoppingSection)  # type: ignore[arg-type]
    computational: ComputationalSection = Field(default_factory=ComputationalSection)  # type: ignore[arg-type]
    plugins: dict[str, Any] = Field({}, description="options by plugin")
    _fresh: bool = PrivateAttr(default=False)

    @property
    def fresh(self) -> bool:
        """True when weights follow from elsewhere (resume, eval) or none are wanted: no pretrained part is needed."""
        return self._fresh

    def with_fresh_model(self) -> RunConfig:
        """The same configuration for building a model that needs no pretrained parts."""
        config = self.model_copy()
        config._fresh = True
        return config

    def options(self, plugin: str) -> Any:
        """The validated options of a plugin."""
        return self.plugins[plugin]

    def to_toml(self) -> str:
        """The resolved configuration, as it is kept in the run directory."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


@dataclass
class Layers:
    """Configuration layers merged so far, each value with the place it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, str] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any], source: str, text: str | None = None) -> None:
        """Lay `values` over what is there. `text`: the TOML they were read from, to find lines in."""
        self._merge(self.values, values, (), source, text)

    def add_file(self, path: Path) -> None:
        """Lay a TOML file over what is there."""
        text, values = read_toml(path)
        self.add(values, str(path), text)

    def add_assignment(self, assignment: str, plugins: Sequence[str]) -> None:
        """Lay `key=value` (from `--set`) over what is there; `lmv_net.x` is short for `plugins.lmv_net.x`."""
        key, separator, raw = assignment.partition("=")
        names = [part.strip() for part in key.split(".")]
        if not separator or not all(names):
            raise ConfigError(f"--set {assignment!r}: write key=value, for example optimization.num_epochs=5")
        if names[0] in plugins and names[0] not in RunConfig.model_fields:
            names.insert(0, "plugins")
        values: Any = parse_value(raw.strip())
        for name in reversed(names):
            values = {name: values}
        self.add(values, f"--set {key.strip()}")

    def _merge(self, into: dict[str, Any], values: Mapping[str, Any], at: Key, source: str, text: str | None) -> None:
        for name, value in values.items():
            key = (*at, name)
            if isinstance(value, Mapping):
                if not isinstance(into.get(name), dict):
                    into[name] = {}
                self.sources.setdefault(key, _place(source, text, key))
                self._merge(into[name], value, key, source, text)
            else:
                into[name] = value
                self.sources[key] = _place(source, text, key)

    def build(self, options: Mapping[str, type[BaseModel] | None]) -> RunConfig:
        """The validated configuration. `options`: every chosen plugin with its options model, if it has one."""
        problems: list[str] = []
        values = dict(self.values)
        given = values.pop("plugins", {})
        if not isinstance(given, dict):
            raise ConfigError(f"{self._where(('plugins',))}plugins: a table of options by plugin is expected")
        config: RunConfig | None = self._validate(RunConfig, values, (), problems)
        chosen: dict[str, Any] = {}
        for name in given:
            if name not in options:
                at = self._where(("plugins", name))
                problems.append(
                    f"{at}plugins.{name}: this plugin is not part of the run{nearest(name, options)}; "
                    f"chosen: {', '.join(options) or 'none'}"
                )
        for name, model in options.items():
            key = ("plugins", name)
            if model is not None:
                chosen[name] = self._validate(model, given.get(name, {}), key, problems)
            elif given.get(name):
                problems.append(f"{self._where(key)}plugins.{name}: this plugin has no options")
        if problems or config is None:
            title = "The configuration cannot be used:" if len(problems) > 1 else "Configuration:"
            raise ConfigError(f"{title}\n{first_lines(problems)}")
        config.plugins = chosen
        return config

    def _validate(self, model: type[BaseModel], values: Any, at: Key, problems: list[str]) -> Any:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            for item in error.errors():
                key = at + tuple(str(part) for part in item["loc"])
                problems.append(f"{self._where(key)}{'.'.join(key)}: {_explain(item, model)}")
            return None

    def _where(self, key: Key) -> str:
        while key:
            if key in self.sources:
                return f"{self.sources[key]}: "
            key = key[:-1]
        return ""


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """A TOML file's text and values; errors name the file and line."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomli.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def parse_value(raw: str) -> Any:
    """A value of `--set`: TOML where it is TOML (numbers, booleans, lists), otherwise the text itself."""
    try:
        return tomli.loads(f"value = {raw}")["value"]
    except tomli.TOMLDecodeError:
        return raw


def locate(text: str, key: Key) -> int | None:
    """The line (from 1) where `key` is given in a TOML text, or None."""
    table: Key = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line):
            table = _dotted(header.group(1))
            if table == key:
                return number
        elif (given := re.match(r"\s*([\w.\"'-]+)\s*=", line)) and (*table, *_dotted(given.group(1))) == key:
            return number
    return None


def _dotted(name: str) -> Key:
    return tuple(part.strip().strip("\"'") for part in name.split("."))


def _place(source: str, text: str | None, key: Key) -> str:
    line = locate(text, key) if text is not None else None
    return f"{source}:{line}" if line else source


def _explain(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        fields = _fields_at(model, item["loc"][:-1])
        return f"unknown key{nearest(str(item['loc'][-1]), fields)}; known here: {', '.join(fields) or 'none'}"
    message = item["msg"][0].lower() + item["msg"][1:]
    shown = repr(item["input"])
    return f"{message}, not {shown if len(shown) < 80 else shown[:77] + '...'}"


def _fields_at(model: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    for part in loc:
        if isinstance(part, int):  # the place in a list of tables, whose model is known already
            continue
        described = model.model_fields.get(part) if isinstance(part, str) else None
        inner = described.annotation if described else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            inner = next((arg for arg in getattr(inner, "__args__", ()) if _is_model(arg)), None)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
