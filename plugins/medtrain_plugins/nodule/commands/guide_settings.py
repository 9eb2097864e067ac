"""The PIVOT guide's settings, which are marked when read, and the configuration that is built from them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medtrain.errors import ConfigError

PIVOT, TENSORBOARD, WANDB = "pivot", "tensorboard", "wandb"
_EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


@dataclass
class ConvertedGuide:
    """values: the configuration, nested as in TOML. notes: decisions. unplaced: key without counterpart -> reason."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unplaced: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any) -> None:
        """Sets a dotted key; `pivot.` stands for `plugins.pivot.`."""
        into, names = self.values, key.split(".")
        if names[0] in (PIVOT, TENSORBOARD, WANDB):
            names.insert(0, "plugins")
        for name in names[:-1]:
            into = into.setdefault(name, {})
        into[names[-1]] = value

    def get(self, key: str) -> Any:
        """The value of a dotted key; None if it was not set."""
        value: Any = self.values
        for name in key.replace("pivot.", "plugins.pivot.", 1).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


class GuideSettings:
    """The guide's settings; `left` gives those that were not read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.read: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key; marks it, and everything in it, as read."""
        value = self.look(key)
        if value is None:
            return default
        self.read.add(key)
        return value

    def listed(self, key: str) -> list[Any]:
        """The value of a dotted key as a list; marks it as read."""
        value = self.take(key, [])
        return value if isinstance(value, list) else [value]

    def look(self, key: str) -> Any:
        """The value of a dotted key, without marking it as read."""
        value: Any = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def section(self, key: str) -> dict[str, Any]:
        """The entries under a key, without marking them as read."""
        found = self.look(key)
        return dict(found) if isinstance(found, Mapping) else {}

    def left(self) -> Iterator[str]:
        """Keys with a value that were not read."""
        yield from self._left(self.values, "")

    def _left(self, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if key in self.read:
                continue
            if isinstance(value, Mapping):
                yield from self._left(value, f"{key}.")
            elif value is not None:
                yield key


def read_yaml(path: Path) -> dict[str, Any]:
    """A file of settings. Raises ConfigError if it is not YAML, or not a mapping of sections."""
    import yaml

    try:
        loaded = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise ConfigError(f"{path}: sections such as data, model and training are expected")
    settings: dict[str, Any] = _numbers(loaded)
    return settings


def merge(base: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """`other` laid over `base`, section by section; lists are replaced."""
    merged = dict(base)
    for name, value in other.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def _numbers(value: Any) -> Any:
    """Numbers such as 1e-8, which are texts in YAML 1.1 because they have no point."""
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
