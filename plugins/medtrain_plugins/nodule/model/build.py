"""Networks by name: our own, MONAI's, and the user's classes by their dotted path."""

from __future__ import annotations

import inspect
import math
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from medtrain.errors import ConfigError, nearest
from torch import nn

from medtrain_plugins.nodule.model.detector import (
    GROUPS,
    Activation,
    Norm,
    OutputStride,
    ResidualUNet,
    make_activation,
    make_norm,
)
from medtrain_plugins.nodule.model.heads import TASKS, DenseDetector, DenseHeads
from medtrain_plugins.nodule.model.networks import ReferenceUNet

NETWORKS = ("residual_unet", "reference_unet", "DynUNet", "SegResNet")
MONAI_ACTIVATIONS = {"relu": "relu", "leaky_relu": "leakyrelu", "elu": "elu", "silu": "swish"}


def build_detector(
    name: str = "residual_unet",
    *,
    in_channels: int = 1,
    base_filters: int = 32,
    depth: int = 4,
    norm: Norm = "instance",
    activation: Activation = "leaky_relu",
    dropout: float = 0.0,
    deep_supervision: bool = False,
    gradient_checkpointing: bool = False,
    output_stride: OutputStride = 1,
    tasks: Sequence[str] = TASKS,
    diameter_channels: int = 3,
    triage_channels: int = 1,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised detector: image (B, in_channels, D, H, W) -> `heads.DetectorOutput`.

    name: one of `NETWORKS`, or the dotted path of a class. depth: number of halvings. The other settings are those of
    `detector.ResidualUNet` and `heads.DenseHeads`; a network that does not support one accepts only its default.
    options: further arguments of MONAI's networks, or of the user's class.

    reference_unet is fixed: base_filters and depth only (batch norm, ReLU, all heads but offset).

    The user's class: `forward(self, x)` takes (B, in_channels, D, H, W) and returns a tensor of the same size (of half
    of it with output_stride 2). It gets `in_channels` and `out_channels` if it has these arguments. One channel
    (out_channels, default 1) is the heatmap's logit; several are features, which get the dense heads. Raises
    ConfigError if the network cannot be built.
    """
    given = dict(options or {})
    plain = {"deep_supervision": deep_supervision, "gradient_checkpointing": gradient_checkpointing}
    match name:
        case "reference_unet":
            _refuse(name, plain | {"dropout": dropout, "output_stride 2": output_stride == 2, "options": given})
            return ReferenceUNet(in_channels, base_filters, depth)
        case "residual_unet":
            _refuse(name, {"options": given})
            backbone: nn.Module = ResidualUNet(
                in_channels,
                base_filters,
                depth,
                norm=norm,
                activation=activation,
                dropout=dropout,
                deep_supervision=deep_supervision,
                gradient_checkpointing=gradient_checkpointing,
                output_stride=output_stride,
            )
            channels, smallest = base_filters, 2**depth
        case "DynUNet" | "SegResNet":
            _refuse(name, plain)
            settings = (in_channels, base_filters, depth, norm, activation, dropout, output_stride)
            backbone = (_dynunet if name == "DynUNet" else _segresnet)(*settings, given)
            # Normalisation needs more than one voxel at the coarsest level.
            channels, smallest = base_filters, 2**depth * (1 if norm == "group" else 2)
        case _:
            _refuse(name, plain | {"dropout": dropout})
            backbone = _own_class(name, in_channels, given)
            channels, smallest = int(given.get("out_channels", 1)), 1
    if channels == 1 and name not in NETWORKS:
        return DenseDetector(backbone, None, output_stride=output_stride)
    heads = DenseHeads(
        channels,
        lambda width: make_norm(norm, width),
        lambda: make_activation(activation),
        tasks,
        diameter_channels,
        triage_channels,
    )
    return DenseDetector(
        backbone,
        heads,
        output_stride=output_stride,
        divisor=2**depth if name in NETWORKS else 1,
        smallest=smallest,
        deep_levels=len(backbone.deep_heads) if isinstance(backbone, ResidualUNet) else 0,
    )


def _dynunet(
    in_channels: int,
    base_filters: int,
    depth: int,
    norm: Norm,
    activation: Activation,
    dropout: float,
    output_stride: int,
    given: dict[str, Any],
) -> nn.Module:
    from monai.networks.nets import DynUNet

    # MONAI needs at least two strides between the first level and the bottleneck.
    levels = depth if output_stride == 2 else depth + 1
    if levels < 3:
        raise ConfigError(f"network DynUNet: depth {depth} is too small; take {depth + 3 - levels} or more")
    settled = {
        "spatial_dims": 3,
        "in_channels": in_channels,
        "out_channels": base_filters,
        "kernel_size": [3] * levels,
        "strides": [output_stride] + [2] * (levels - 1),
        "upsample_kernel_size": [2] * (levels - 1),
        "filters": [base_filters * 2**level for level in range(levels)],
        "norm_name": _monai_norm(norm, base_filters),
        "act_name": MONAI_ACTIVATIONS[activation],
        "dropout": dropout or None,
        "res_block": True,
    }
    return _make("DynUNet", DynUNet, settled, given)


def _segresnet(
    in_channels: int,
    base_filters: int,
    depth: int,
    norm: Norm,
    activation: Activation,
    dropout: float,
    output_stride: int,
    given: dict[str, Any],
) -> nn.Module:
    _refuse("SegResNet", {"output_stride 2": output_stride == 2})
    from monai.networks.nets import SegResNet

    settled = {
        "spatial_dims": 3,
        "init_filters": base_filters,
        "in_channels": in_channels,
        "out_channels": base_filters,
        "dropout_prob": dropout or None,
        "act": MONAI_ACTIVATIONS[activation],
        "norm": _monai_norm(norm, base_filters),
        "blocks_down": [1] + [2] * depth,
        "blocks_up": [1] * depth,
    }
    return _make("SegResNet", SegResNet, settled, given)


def _monai_norm(norm: Norm, channels: int) -> Any:
    match norm:
        case "group":
            return ("group", {"num_groups": math.gcd(GROUPS, channels)})
        case "instance":
            return ("instance", {"affine": True})
    return norm


def _own_class(path: str, in_channels: int, given: dict[str, Any]) -> nn.Module:
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module:
        raise ConfigError(
            f"there is no network {path!r}{nearest(path, NETWORKS)}; there are {', '.join(NETWORKS)}, and classes "
            "by their dotted path, such as mypackage.mymodule.MyDetector"
        )
    try:
        found = pkgutil.resolve_name(f"{module}:{name}")
    except AttributeError:
        found = None
    except (ImportError, ValueError) as error:
        raise ConfigError(f"network {path!r} cannot be imported: {error}; is its folder on PYTHONPATH?") from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ConfigError(f"network {path!r}: {module} has no torch.nn.Module class {name!r}")
    takes = inspect.signature(found).parameters
    settled = {"in_channels": in_channels, "out_channels": 1}
    settled = {key: value for key, value in settled.items() if key in takes}
    if "out_channels" not in takes:
        # Then it only says how many channels the class returns.
        given = {key: value for key, value in given.items() if key != "out_channels"}
    return _make(path, found, settled, given)


def _make(name: str, made: Any, settled: dict[str, Any], given: dict[str, Any]) -> nn.Module:
    parameters = inspect.signature(made).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for key in given:
        if key not in parameters and not open_ended:
            raise ConfigError(
                f"network {name}: no argument {key!r}{nearest(key, parameters)}; it takes {', '.join(parameters)}"
            )
    try:
        network: nn.Module = made(**(settled | given))
    except Exception as error:  # a network may raise anything
        raise ConfigError(f"network {name} cannot be made: {error}") from error
    return network


def _refuse(name: str, settings: Mapping[str, Any]) -> None:
    for setting, value in settings.items():
        if value:
            raise ConfigError(f"network {name} has no {setting}; take residual_unet, or leave it at its default")
