"""Pretrained weights from files of any origin, without trusting them.

Safetensors and plain state dicts are read as they are. Official Mirai snapshots are whole pickled modules, so
they go through an unpickler for which every foreign class is an empty shell: it keeps attributes and runs
nothing. Names outside the short list that such files contain are refused.
"""

from __future__ import annotations

import io
import pickle
import re
import types
import warnings
from pathlib import Path
from typing import Any

import torch
from medtrain.errors import CheckpointError, first_lines
from torch import Tensor

# What a snapshot may name, and what we make of it. Shells (see `_Shell`) are inert whatever they stand for;
# the list is short all the same, so that a file that asks for more is refused instead of half understood.
_SHELL_PACKAGES = ("onconet.", "torch.nn.", "numpy.", "argparse.")
_SHELLS = {("builtins", "set"), ("__builtin__", "set"), ("_codecs", "encode")}
_REAL = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
}

_PART = r"(?P<rest>(?:(?:conv|bn)[12]|downsample\.[01])\.\w+)$"
_PREFIX = r"^(?P<prefix>(?:.+\.)?)"
_MIRAI_BLOCK = re.compile(_PREFIX + r"layer(?P<stage>[1-4])[_.](?P<block>[01])\." + _PART)
_MIRAI_STEM = re.compile(_PREFIX + r"downsampler\." + _PART)
_OUR_CHILD = re.compile(_PREFIX + r"(?P<child>[0-8])\." + _PART)
_PLAIN_STEM = re.compile(_PREFIX + r"(?P<rest>(?:conv1|bn1)\.\w+)$")


def load_backbone(path: str | Path) -> dict[str, Tensor]:
    """The 120 tensors of a Mirai backbone, under the keys of `mirai_backbone()`, on the CPU.

    path: an official snapshot (zip or legacy, wrapped in DataParallel or a dict or not), a state dict, or
    safetensors; of the encoder alone (Mirai's or torchvision's key names) or of a whole model that contains
    one. The backbone is found by its key names, never by position.

    Raises CheckpointError when the file cannot be read or is not safe to read, when no complete backbone or
    more than one is in it, or when a shape differs.
    """
    from medtrain_plugins.mammography.backbone import mirai_backbone

    with torch.device("meta"):
        expected = mirai_backbone().state_dict()
    candidates: dict[str, dict[str, Tensor]] = {}
    for key, tensor in _read(path).items():
        prefix, name = _backbone_key(key)
        if name in expected:
            candidates.setdefault(prefix, {})[name] = tensor
    complete = [prefix for prefix, found in candidates.items() if len(found) == len(expected)]
    if len(complete) > 1:
        names = ", ".join(repr(prefix) for prefix in sorted(complete))
        raise CheckpointError(f"{path} holds {len(complete)} backbones, under {names}: save the one to load alone")
    if not complete:
        found = max(candidates.values(), key=len, default={})
        missing = [key for key in expected if key not in found]
        raise CheckpointError(
            f"{path} holds no complete Mirai backbone (ResNet-18): {len(found)} of {len(expected)} tensors "
            f"found, missing\n{first_lines(missing)}"
        )
    return _checked(candidates[complete[0]], expected, path)


def load_registration(path: str | Path) -> dict[str, Tensor]:
    """The 282 tensors of a MammoRegNet, on the CPU; a leading `module.` of each key is dropped, nothing else.

    path: safetensors (such as `split-0/best-<metric>/model.safetensors` of a run directory) or a state dict.

    Raises CheckpointError when the file cannot be read or is not safe to read, or is not a MammoRegNet.
    """
    from medtrain_plugins.mammography.registration import MammoRegNet

    with torch.device("meta"):
        expected = MammoRegNet().state_dict()
    found = {key.removeprefix("module."): tensor for key, tensor in _read(path).items()}
    wrong = [f"missing: {key}" for key in expected if key not in found]
    wrong += [f"unknown: {key}" for key in found if key not in expected]
    if wrong:
        raise CheckpointError(f"{path} does not hold the weights of a MammoRegNet:\n{first_lines(wrong)}")
    return _checked(found, expected, path)


def _backbone_key(key: str) -> tuple[str, str]:
    """Prefix and name in our backbone of a state-dict key; the name is empty for keys of other parts."""
    if match := _MIRAI_BLOCK.match(key):
        child = 2 * int(match["stage"]) - 1 + int(match["block"])
        return match["prefix"], f"{child}.{match['rest']}"
    if match := _MIRAI_STEM.match(key):
        return match["prefix"], f"0.{match['rest']}"
    if match := _OUR_CHILD.match(key):
        return match["prefix"], f"{match['child']}.{match['rest']}"
    if match := _PLAIN_STEM.match(key):
        return match["prefix"], f"0.{match['rest']}"
    return "", ""


def _checked(found: dict[str, Tensor], expected: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Tensors in the expected order, dtype and shape, each with memory of its own."""
    wrong = [
        f"{key}: {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if found[key].shape != tensor.shape
    ]
    if wrong:
        raise CheckpointError(f"{path} holds tensors of other shapes:\n{first_lines(wrong)}")
    return {key: found[key].detach().to(tensor.dtype, copy=True).contiguous() for key, tensor in expected.items()}


def _read(path: str | Path) -> dict[str, Tensor]:
    """Every named tensor of a weights file, nested names joined by dots."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    content = path.read_bytes()
    if content[8:9] == b"{":  # safetensors: the length of the header, then the header, which is JSON
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return dict(load(content))
        except SafetensorError as error:
            raise CheckpointError(f"{path} is a damaged safetensors file: {error}") from error
    return _named_tensors(_unpickle(content, path))


def _unpickle(content: bytes, path: Path) -> Any:
    if content.startswith(b"PK") and b"constants.pkl" in content:
        raise CheckpointError(f"{path} is a TorchScript program: save a state dict or safetensors instead")
    # From memory, not from the file: torch reads a third format, tar archives, from real files only, and that
    # one is unpacked to disk while it is read.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # legacy files carry the source code of their classes and compare it
        try:
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception:  # not a plain state dict: whatever the reason, the reader below has the last word
            pass
        try:
            return torch.load(
                io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=_restricted_pickle()
            )
        except CheckpointError as error:
            raise CheckpointError(f"{path} was not loaded: {error}") from None
        except Exception as error:
            raise CheckpointError(f"{path} is neither safetensors nor a readable PyTorch file: {error}") from error


class _Shell:
    """Stands for any class or function of a snapshot: takes all arguments, keeps attributes, does nothing."""

    # Asked of every class of a legacy file; True would let torch write source code to disk.
    dump_patches = False

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in _REAL:
            return super().find_class(module, name)
        if (module, name) in _SHELLS or f"{module}.".startswith(_SHELL_PACKAGES):
            return _Shell
        raise CheckpointError(
            f"it asks for {module}.{name}, which no Mirai snapshot or state dict needs and which might run "
            "code. If you trust its source, save its state_dict() as safetensors where it was made"
        )


def _restricted_pickle() -> Any:
    """A stand-in for the module `pickle`, as `torch.load` wants it."""

    def load(file: Any, **options: Any) -> Any:
        return _RestrictedUnpickler(file, **options).load()

    module = types.ModuleType("restricted_pickle")
    vars(module).update(Unpickler=_RestrictedUnpickler, load=load)
    return module


def _named_tensors(root: Any) -> dict[str, Tensor]:
    """Tensors of nested dicts and module shells by dotted name; an object met twice is named once."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, Tensor):
            named[prefix.removesuffix(".")] = value
        elif isinstance(value, dict | _Shell) and id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, dict):
                children = value
            else:
                parts = (vars(value).get(part) for part in ("_parameters", "_buffers", "_modules"))
                children = {key: child for part in parts if isinstance(part, dict) for key, child in part.items()}
            waiting += [(f"{prefix}{key}.", child) for key, child in children.items()]
    return named
