"""Objects as data: an import path and constructor arguments, by which a run directory gives them back.

An object can be written down when its class can be imported by its path and keeps every constructor argument in an
attribute of the same name (the convention of scikit-learn), as a value of JSON, a path, a small array, a function of a
module, or another such object. Nothing else of it is kept, and no pickle is involved: what is rebuilt is asked for by
name, and only classes of the expected kind are called.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medtrain.errors import UsageError

Recipe = dict[str, Any]
# Arguments that are not kept: where parameters are made (rebuilt ones are float32 on the CPU), and what torch's losses
# were told before they had `reduction`.
_NOT_KEPT = ("device", "dtype", "size_average", "reduce")
_LARGEST = 100_000  # numbers of an array that are written down


# Where an object is recorded by its public name, which stays when files move.
PUBLIC_HOMES = ("medtrain", "medtrain.data", "medtrain.protocols", "medtrain.testing")
# Modules and names by the paths that earlier releases recorded, and where they are now. A plugin whose modules move
# has such a table too, MOVED in the package above them.
MOVED = {
    "medtrain.callbacks": "medtrain",
    "medtrain.data.adapt": "medtrain.data",
    "medtrain.data.adapt:Named": "medtrain.data:NamedSamples",
    "medtrain.data.contract": "medtrain.protocols",
    "medtrain.data.loader": "medtrain.data",
    "medtrain.data.split": "medtrain.data",
    "medtrain.metrics": "medtrain.protocols",
    "medtrain.model": "medtrain.protocols",
    "medtrain.schedules": "medtrain.protocols",
    "medtrain.toy": "medtrain.testing",
}


class NotSerializable(Exception):
    """Why an object cannot be written down."""


def recipe(value: Any) -> Any:
    """A JSON description of `value`. Raises NotSerializable."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [recipe(item) for item in value]}
    if isinstance(value, (list, range)):
        return [recipe(item) for item in value]
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise NotSerializable("a dictionary with keys that are no text")
        return {"dict": {key: recipe(item) for key, item in value.items()}}
    if inspect.isfunction(value) or inspect.isclass(value):
        return {"name": _import_path(value)}
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return _array(value)
    if type(value) is nn.Sequential:
        return {"sequential": {name: recipe(layer) for name, layer in value.named_children()}}
    return {"object": _import_path(type(value)), "arguments": _arguments(value)}


def rebuild(described: Any, kind: Callable[[type], bool], what: str) -> Any:
    """The object of a recipe whose class satisfies `kind`; `what` it should be is for the message.

    Raises UsageError when its class is not there or of another kind.
    """
    if isinstance(described, dict) and "sequential" in described:
        return nn.Sequential(
            OrderedDict((name, _value(layer, what)) for name, layer in described["sequential"].items())
        )
    if not isinstance(described, dict) or "object" not in described:
        raise UsageError(f"the recorded {what} is no recipe of an object")
    found = _find(described["object"], what)
    if not inspect.isclass(found) or not kind(found):
        raise UsageError(f"the recorded {what}, {described['object']}, is not one")
    arguments = {name: _value(item, what) for name, item in described["arguments"].items()}
    try:
        return found(**arguments)
    except Exception as error:  # the class has changed since, or its files are gone
        raise UsageError(
            f"the recorded {what}, {described['object']}, cannot be made again: {type(error).__name__}: {error}"
        ) from error


def function(described: Any, what: str) -> Any:
    """The function (or nothing) that a recipe names."""
    return _value(described, what)


def is_dataset(kind: type) -> bool:
    """Whether instances are map-style datasets."""
    return hasattr(kind, "__getitem__") and hasattr(kind, "__len__")


def _value(item: Any, what: str) -> Any:
    if isinstance(item, list):
        return [_value(part, what) for part in item]
    if not isinstance(item, dict):
        return item
    if "float" in item:
        return float(item["float"])
    if "path" in item:
        return Path(item["path"])
    if "tuple" in item:
        return tuple(_value(part, what) for part in item["tuple"])
    if "array" in item:
        array = np.array(item["array"], dtype=item["dtype"])
        return torch.from_numpy(array) if item["torch"] else array
    if "dict" in item:
        return {key: _value(part, what) for key, part in item["dict"].items()}
    if "name" in item:
        found = _find(item["name"], what)
        if not (inspect.isfunction(found) or inspect.isclass(found)):
            raise UsageError(f"the recorded {what} names {item['name']}, which is neither function nor class")
        return found
    return rebuild(item, _is_part, f"part of the {what}")


def _is_part(kind: type) -> bool:
    """Whether a class may be called for an argument: data, networks and callables, nothing that starts processes."""
    return is_dataset(kind) or dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields") or callable_class(kind)


def callable_class(kind: type) -> bool:
    """Whether instances can be called: networks, losses, transforms."""
    return "__call__" in {name for base in kind.__mro__ for name in vars(base)}


def _array(value: Any) -> Recipe:
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    if array.size > _LARGEST or array.dtype.kind not in "biuf":
        raise NotSerializable(f"an array of {array.size} {array.dtype} values")
    return {"array": array.tolist(), "dtype": str(array.dtype), "torch": isinstance(value, torch.Tensor)}


def _arguments(value: Any) -> Recipe:
    """The constructor arguments of an object, from its attributes of the same names."""
    name = type(value).__qualname__
    arguments: Recipe = {}
    for parameter in _parameters(type(value)):
        if parameter.kind is parameter.VAR_KEYWORD:
            further = getattr(value, parameter.name, None)
            arguments |= {key: recipe(item) for key, item in further.items()} if isinstance(further, dict) else {}
            continue
        if parameter.name in _NOT_KEPT:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            raise NotSerializable(f"{name} takes positional arguments only it knows")
        if not hasattr(value, parameter.name):
            raise NotSerializable(f"{name} does not keep its argument {parameter.name!r} in an attribute of that name")
        kept = getattr(value, parameter.name)
        if parameter.name == "bias" and parameter.default is True:
            kept = kept is not None and kept is not False  # layers keep the parameter instead of the wish for one
        try:
            arguments[parameter.name] = recipe(kept)
        except NotSerializable as error:
            raise NotSerializable(f"{name}.{parameter.name}: {error}") from None
    return arguments


def _parameters(kind: type) -> Sequence[inspect.Parameter]:
    if "__init__" not in {name for base in kind.__mro__[:-1] for name in vars(base)}:
        return []
    return list(inspect.signature(kind).parameters.values())


def _import_path(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
    if not module or module == "__main__" or "<" in name or not name:
        raise NotSerializable(f"{name or value!r} cannot be imported by its path (it lives in {module or 'no module'})")
    for home in (*PUBLIC_HOMES, module):
        if _find_quietly(f"{home}:{name}") is value:
            return f"{home}:{name}"
    raise NotSerializable(f"{module}:{name} is something else")


def _find(path: str, what: str) -> Any:
    found = _find_quietly(_present_path(path))
    if found is None:
        raise UsageError(f"the recorded {what} needs {path}, which cannot be imported here; give the {what} yourself")
    return found


def _present_path(path: str) -> str:
    """Where an object is now whose path an older release recorded."""
    module, separator, name = path.partition(":")
    moved = MOVED | (_find_quietly(f"{module.rpartition('.')[0]}:MOVED") or {})
    return str(moved.get(path, moved.get(module, module) + separator + name))


def _find_quietly(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError):
        return None
    return found
