"""Pretrained parts from files of any origin: official Mirai snapshots, state dicts, safetensors.

Parts are found by the names of their tensors and must be complete. Files are read without trusting them
(`unpickle`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from medtrain.errors import CheckpointError, first_lines
from medtrain.weights import Shell, unpickle
from torch import Tensor

_PART = r"(?P<rest>(?:(?:conv|bn)[12]|downsample\.[01])\.\w+)$"
_PREFIX = r"^(?P<prefix>(?:.+\.)?)"
_MIRAI_BLOCK = re.compile(_PREFIX + r"layer(?P<stage>[1-4])[_.](?P<block>[01])\." + _PART)
_MIRAI_STEM = re.compile(_PREFIX + r"downsampler\." + _PART)
_OUR_CHILD = re.compile(_PREFIX + r"(?P<child>[0-8])\." + _PART)
_PLAIN_STEM = re.compile(_PREFIX + r"(?P<rest>(?:conv1|bn1)\.\w+)$")


def load_backbone(path: str | Path) -> dict[str, Tensor]:
    """The 120 tensors of a Mirai backbone, under the keys of `mirai_backbone()`, on the CPU.

    path: an official snapshot (zip or legacy, wrapped in DataParallel or a dict or not), a state dict, or safetensors;
    of the encoder alone (Mirai's or torchvision's key names) or of a whole model that contains one. The backbone is
    found by its key names, never by position.

    Raises CheckpointError if the file cannot be read or is not safe to read, if it has no complete backbone or more
    than one, or if a shape differs.
    """
    return find_backbone(named_tensors(read_file(path)), path)[1]


def find_backbone(tensors: dict[str, Tensor], path: str | Path) -> tuple[str, dict[str, Tensor]]:
    """The prefix of a Mirai backbone's tensors among others, and the 120 tensors as from `load_backbone`.

    path: the file, for messages.
    """
    from medtrain_plugins.mammography.model.backbone import mirai_backbone

    with torch.device("meta"):
        expected = mirai_backbone().state_dict()
    candidates: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
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
    return complete[0], _checked(candidates[complete[0]], expected, path)


def load_registration(path: str | Path) -> dict[str, Tensor]:
    """The 282 tensors of a MammoRegNet, on the CPU; only a leading `module.` of each key is dropped.

    path: safetensors (such as `split-0/best-<metric>/model.safetensors` of a run directory) or a state dict.

    Raises CheckpointError if the file cannot be read, is not safe to read, or is not a MammoRegNet.
    """
    from medtrain_plugins.mammography.model.registration import MammoRegNet

    with torch.device("meta"):
        expected = MammoRegNet().state_dict()
    found = {key.removeprefix("module."): tensor for key, tensor in named_tensors(read_file(path)).items()}
    wrong = [f"missing: {key}" for key in expected if key not in found]
    wrong += [f"unknown: {key}" for key in found if key not in expected]
    if wrong:
        raise CheckpointError(f"{path} does not hold the weights of a MammoRegNet:\n{first_lines(wrong)}")
    return _checked(found, expected, path)


def is_of_backbone(key: str) -> bool:
    """Whether a state-dict key is, by its name, one of a Mirai backbone."""
    return bool(_backbone_key(key)[1])


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
    """Tensors in the expected order, dtype and shape, each with its own memory."""
    wrong = [
        f"{key}: {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if found[key].shape != tensor.shape
    ]
    if wrong:
        raise CheckpointError(f"{path} holds tensors of other shapes:\n{first_lines(wrong)}")
    return {key: found[key].detach().to(tensor.dtype, copy=True).contiguous() for key, tensor in expected.items()}


def read_file(path: str | Path) -> Any:
    """The content of a weights file: the tensors of safetensors by name, or the pickled object.

    Raises CheckpointError if it cannot be read or is not safe to read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    content = path.read_bytes()
    if content[8:9] == b"{":  # safetensors: the length of the header, then the header, which is JSON
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(content)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is a damaged safetensors file: {error}") from error
    return unpickle(content, path)


def named_tensors(root: Any) -> dict[str, Tensor]:
    """Tensors of nested dicts and pickled modules by dotted name; an object met twice is named once."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        prefix, value = waiting.pop()
        if isinstance(value, Tensor):
            named[prefix.removesuffix(".")] = value
        elif isinstance(value, dict | Shell) and id(value) not in seen:
            seen.add(id(value))
            children = [(f"{prefix}{key}.", child) for key, child in children_of(value)]
            waiting += reversed(children)
    return named


def children_of(value: dict[Any, Any] | Shell) -> list[tuple[Any, Any]]:
    """Names and values of a dict's items, or of a pickled module's parameters, buffers and modules."""
    if isinstance(value, dict):
        return list(value.items())
    parts = [value.attributes.get(part) for part in ("_parameters", "_buffers", "_modules")]
    return [item for part in parts if isinstance(part, dict) for item in part.items()]
