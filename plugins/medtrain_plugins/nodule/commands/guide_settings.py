"""Settings of the PIVOT guide as they are read, and the configuration of medtrain as it is put together."""

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
    """values: the configuration, nested as in TOML. notes: what was decided. unplaced: keys that have no place, why."""

    values: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unplaced: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any) -> None:
        """Set a dotted key; `pivot.` is `plugins.pivot.`."""
        into, names = self.values, key.split(".")
        if names[0] in (PIVOT, TENSORBOARD, WANDB):
            names.insert(0, "plugins")
        for name in names[:-1]:
            into = into.setdefault(name, {})
        into[names[-1]] = value

    def get(self, key: str) -> Any:
        """What was put there; None when nothing was."""
        value: Any = self.values
        for name in key.replace("pivot.", "plugins.pivot.", 1).split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value


class GuideSettings:
    """The guide's settings, crossed off as they are read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.read: set[str] = set()

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key, read from now on with all that is in it."""
        value = self.look(key)
        if value is None:
            return default
        self.read.add(key)
        return value

    def listed(self, key: str) -> list[Any]:
        """The value of a dotted key as a list, read from now on."""
        value = self.take(key, [])
        return value if isinstance(value, list) else [value]

    def look(self, key: str) -> Any:
        """The same without reading it."""
        value: Any = self.values
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    def section(self, key: str) -> dict[str, Any]:
        """The entries under a key, unread."""
        found = self.look(key)
        return dict(found) if isinstance(found, Mapping) else {}

    def left(self) -> Iterator[str]:
        """Keys with a value that nobody has read."""
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
    """A file of settings. Raises ConfigError when it is no YAML, or no mapping of sections."""
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
    """Numbers such as 1e-8, which YAML 1.1 takes for texts because they have no point."""
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value
