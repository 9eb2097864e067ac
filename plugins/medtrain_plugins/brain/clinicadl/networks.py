"""Networks of ClinicaDL 2.0 that are MONAI's under other names: how to build them, and the names of their weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

DENSE_LAYERS = {
    "DenseNet121": [6, 12, 24, 16],
    "DenseNet161": [6, 12, 36, 24],
    "DenseNet169": [6, 12, 32, 32],
    "DenseNet201": [6, 12, 48, 32],
}
RES_BLOCKS = {
    "ResNet18": ("basic", [2, 2, 2, 2]),
    "ResNet34": ("basic", [3, 4, 6, 3]),
    "ResNet50": ("bottleneck", [3, 4, 6, 3]),
    "ResNet101": ("bottleneck", [3, 4, 23, 3]),
    "ResNet152": ("bottleneck", [3, 8, 36, 3]),
}
EXPANSION = 4  # channel factor of MONAI's bottlenecks
_PLAIN = ("celu", "elu", "gelu", "leakyrelu", "mish", "relu", "relu6", "selu", "sigmoid", "tanh")  # without parameters


class NoCounterpartError(Exception):
    """The reason why a network has no counterpart."""


@dataclass(frozen=True)
class Counterpart:
    """A network of MONAI. names: (pattern, replacement) from ClinicaDL's keys to MONAI's. out: its last layer."""

    network: str
    options: dict[str, Any]
    names: tuple[tuple[str, str], ...]
    out: str

    def rename(self, key: str) -> str:
        """MONAI's name of a tensor."""
        for pattern, replacement in self.names:
            key = re.sub(pattern, replacement, key)
        return key


def counterpart(described: Mapping[str, Any], drops_sigmoid: bool) -> Counterpart:
    """The same network in MONAI, from its description in model.json. drops_sigmoid: the loss has the final sigmoid.

    Raises NoCounterpartError.
    """
    name = str(described.get("name_"))
    values = {key: value for key, value in described.items() if value is not None}
    if name in DENSE_LAYERS:
        wide = {"growth_rate": 48, "init_features": 96} if name == "DenseNet161" else {}
        values = {**values, **wide, "n_dense_layers": DENSE_LAYERS[name]}
    elif name in RES_BLOCKS:
        kind, blocks = RES_BLOCKS[name]
        widest = EXPANSION if kind == "bottleneck" else 1
        values |= {"block_type": kind, "n_res_blocks": blocks}
        values["n_features"] = [width * widest for width in (64, 128, 256, 512)]
    elif name not in ("DenseNet", "ResNet"):
        raise NoCounterpartError(f"there is no network {name} here, nor one with the same layers")
    if "num_outputs" not in values:
        raise NoCounterpartError(f"this {name} ends without a last layer")
    end = values.get("output_act")
    if end is not None and not (drops_sigmoid and _kind(end) == "sigmoid"):
        raise NoCounterpartError(f"this {name} ends with an activation, {_kind(end)}, and those here do not")
    return _dense_net(values) if name.startswith("DenseNet") else _res_net(values)


def _dense_net(values: Mapping[str, Any]) -> Counterpart:
    known = {
        "n_dense_layers": "block_config",
        "init_features": "init_features",
        "growth_rate": "growth_rate",
        "bottleneck_factor": "bn_size",
        "act": "act",
        "dropout": "dropout_prob",
    }
    options = {here: values[there] for there, here in known.items() if there in values}
    names = ((r"\bact(\d*)\b", r"relu\1"), (r"^fc\.", "class_layers."))
    return Counterpart("DenseNet", options, names, "class_layers.out")


def _res_net(values: Mapping[str, Any]) -> Counterpart:
    act, kind = values.get("act", "relu"), values.get("block_type", "basic")
    widths, blocks = list(values.get("n_features", (64, 128, 256, 512))), list(values.get("n_res_blocks", (2, 2, 2, 2)))
    if len(widths) != 4:
        raise NoCounterpartError(f"a ResNet here has four layers, this one {len(widths)}")
    if _kind(act) not in _PLAIN:
        raise NoCounterpartError(f"a ResNet here has one activation per block, this one {_kind(act)}s with own weights")
    if kind == "bottleneck":
        if values.get("bottleneck_reduction", EXPANSION) != EXPANSION:
            raise NoCounterpartError(f"bottlenecks here reduce to a quarter, not by {values['bottleneck_reduction']}")
        widths = [width // EXPANSION for width in widths]
    options = {
        "block": kind,
        "layers": blocks,
        "block_inplanes": widths,
        "conv1_t_size": values.get("init_conv_size", 7),
        "conv1_t_stride": values.get("init_conv_stride", 2),
        "bias_downsample": False,
        "act": act,
    }
    names = ((r"^conv0\.", "conv1."), (r"^norm0\.", "bn1."), (r"\.norm(\d)\.", r".bn\1."), (r"^fc\.out\.", "fc."))
    return Counterpart("ResNet", options, names, "fc")


def convert(state: Mapping[str, Tensor], found: Counterpart, two_classes: bool) -> dict[str, Tensor]:
    """The weights with the names of MONAI's network.

    two_classes: the logit z becomes the logits (0, z), whose softmax is (1 - sigmoid(z), sigmoid(z)).
    """
    converted = {found.rename(key): tensor for key, tensor in state.items()}
    if two_classes:
        for name in (f"{found.out}.weight", f"{found.out}.bias"):
            if name in converted and len(converted[name]) == 1:
                converted[name] = torch.cat([torch.zeros_like(converted[name]), converted[name]])
    return converted


def _kind(act: Any) -> str:
    return str(act if isinstance(act, str) else act[0]).lower()
