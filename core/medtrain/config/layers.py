"""How layers of TOML and flags become one configuration, and where each value came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli
from pydantic import (
    BaseModel,
    ValidationError,
)

from medtrain.config.sections import RunConfig
from medtrain.errors import ConfigError, first_lines, nearest

Key = tuple[str, ...]


TRACKING = "tracking"


@dataclass
class Layers:
    """Configuration layers merged so far, each value with the place it came from."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[Key, str] = field(default_factory=dict)
    trackers: set[str] = field(default_factory=set)  # plugins whose options were given under `tracking`

    def add(self, values: Mapping[str, Any], source: str, text: str | None = None) -> None:
        """Lay `values` over what is there. `text`: the TOML they were read from, to find lines in."""
        own = {name: value for name, value in values.items() if name != TRACKING}
        self._merge(self.values, own, (), source, text)
        trackers = values.get(TRACKING, {})
        if not isinstance(trackers, Mapping) or not all(isinstance(part, Mapping) for part in trackers.values()):
            raise ConfigError(f"{_place(source, text, (TRACKING,))}: tracking: write tracking.NAME.KEY = value")
        self.trackers |= set(trackers)
        self._merge(self.values, {"plugins": trackers} if trackers else {}, (), source, text)

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
                key = ("plugins", name)
                hint = nearest(name, options) or (f"; add --plugin {name}" if name in self.trackers else "")
                problems.append(
                    f"{self._where(key)}{self._spell(key)}: this plugin is not part of the run{hint}; "
                    f"chosen: {', '.join(options) or 'none'}"
                )
        for name, model in options.items():
            key = ("plugins", name)
            if model is not None:
                chosen[name] = self._validate(model, given.get(name, {}), key, problems)
            elif given.get(name):
                problems.append(f"{self._where(key)}{self._spell(key)}: this plugin has no options")
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
                problems.append(f"{self._where(key)}{self._spell(key)}: {_explain(item, model)}")
            return None

    def _spell(self, key: Key) -> str:
        """The key as it was written."""
        if key[0] == "plugins" and len(key) > 1 and key[1] in self.trackers:
            key = (TRACKING, *key[1:])
        return ".".join(key)

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
    if line is None and text is not None and key[0] == "plugins":
        line = locate(text, (TRACKING, *key[1:]))
    return f"{source}:{line}" if line else source


def _explain(item: Any, model: type[BaseModel]) -> str:
    if item["type"] == "extra_forbidden":
        fields = _fields_at(model, item["loc"][:-1])
        return f"unknown key{nearest(str(item['loc'][-1]), fields)}; known here: {', '.join(fields) or 'none'}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
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
