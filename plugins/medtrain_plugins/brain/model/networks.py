"""Networks by name: a small classifier of our own, and those of MONAI, which is imported only when needed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from medtrain.errors import ConfigError, nearest
from torch import Tensor, nn

SMALL = "Conv5_FC3"

# Our names of networks with another name in MONAI, and sizes that MONAI builds by a function.
SYNONYMS = {
    "AttentionUNet": "AttentionUnet",
    "EfficientNet": "EfficientNetBN",
    **{f"ResNet{depth}": f"resnet{depth}" for depth in (10, 18, 34, 50, 101, 152, 200)},
}
CLASSIFIERS = ("classification", "regression")


class Conv5FC3(nn.Module):
    """Five blocks of convolution, batch norm, ReLU and halving, then three fully connected layers.

    The usual first network for whole-brain volumes (Wen et al., Medical Image Analysis 2020). image (B, C, D, H, W) or
    (B, C, H, W) float32 -> (B, outputs). Halving rounds up, so no voxel of an odd axis is dropped, and stops at 1.

    input_shape: (C, D, H, W) or (C, H, W). channels: of the five blocks. hidden: units of the first two layers.
    dropout: before each of them.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        outputs: int,
        channels: Sequence[int] = (8, 16, 32, 64, 128),
        hidden: Sequence[int] = (128, 32),
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.input_shape, self.outputs = list(input_shape), outputs
        self.channels, self.hidden, self.dropout = list(channels), list(hidden), dropout
        in_channels, *size = input_shape
        if len(size) not in (2, 3):
            raise ValueError(f"images of {len(size)} axes; 2 or 3 are expected")
        if len(channels) != 5 or len(hidden) != 2:
            raise ValueError("five numbers of channels and two of hidden units are expected")
        volumes = len(size) == 3
        conv, norm, pool = (
            (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d) if volumes else (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d)
        )
        blocks: list[nn.Module] = []
        for out_channels in channels:
            blocks += [
                # The following norm has its own shift.
                conv(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                norm(out_channels),
                nn.ReLU(),
                pool(2, ceil_mode=True),
            ]
            in_channels, size = out_channels, [math.ceil(length / 2) for length in size]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(in_channels * math.prod(size), hidden[0]),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], outputs),
        )

    def forward(self, image: Tensor) -> Tensor:
        """image (B, *input_shape) -> (B, outputs)."""
        result: Tensor = self.classifier(self.features(image))
        return result


class FirstOutput(nn.Module):
    """Wraps a network that also returns intermediate values: only its result is passed on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """The first of the network's results."""
        result: Tensor = self.network(image)[0]
        return result


def build_network(
    name: str, task: str, input_shape: Sequence[int], outputs: int, options: dict[str, Any] | None = None
) -> nn.Module:
    """A network that fits the images and the task, freshly initialised.

    name: `Conv5_FC3`, or a network of `monai.networks.nets` by class name (2-D and 3-D; ResNet18 and the like too).
    input_shape: channels, then voxels by axis. outputs: classes, labels or channels of the result. options: further
    arguments of the network; they override those that follow from the data. Raises ConfigError for unknown names and
    arguments, and for networks whose result does not fit the task or the images.
    """
    given = dict(options or {})
    if len(input_shape) not in (3, 4) or min(input_shape) < 1:
        raise ConfigError(f"plugins.brain.input_shape: {list(input_shape)}; channels and two or three sizes are needed")
    if name in (SMALL, "Conv5FC3"):
        if task not in CLASSIFIERS:
            raise ConfigError(f"plugins.brain.network: {name} gives numbers, no images; use UNet or AutoEncoder")
        network = _make(name, Conv5FC3, {"input_shape": input_shape, "outputs": outputs}, given, _parameters(Conv5FC3))
    else:
        network = _from_monai(name, task, list(input_shape), outputs, given)
    return _checked(name, network, task, list(input_shape), outputs)


def _from_monai(name: str, task: str, shape: list[int], outputs: int, given: dict[str, Any]) -> nn.Module:
    from monai.networks import nets

    made: Any = getattr(nets, SYNONYMS.get(name, name), None)
    is_network = isinstance(made, type) and issubclass(made, nn.Module)
    if not (is_network or (name in SYNONYMS and callable(made))):
        classes = {key for key, kind in vars(nets).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
        names = sorted({SMALL, *SYNONYMS, *classes})
        raise ConfigError(
            f"plugins.brain.network: there is no network {name!r}{nearest(name, names)}; there are {SMALL} and those "
            "of monai.networks.nets, such as DenseNet121, ResNet18, SEResNet50, UNet, AttentionUNet, ViT, AutoEncoder"
        )
    if name == "VarAutoEncoder":
        raise ConfigError("plugins.brain.network: VarAutoEncoder needs a loss of its own latent space; use AutoEncoder")
    # The sizes of ResNet are functions that pass their arguments on.
    described = nets.ResNet if made in (getattr(nets, SYNONYMS[key]) for key in SYNONYMS if "Res" in key) else made
    known = _parameters(described)
    if described is not made:
        known -= {"block", "layers", "block_inplanes"}
    return _make(name, made, _settled(known, name, task, shape, outputs, given), given, known)


def _settled(
    known: set[str], name: str, task: str, shape: list[int], outputs: int, given: dict[str, Any]
) -> dict[str, Any]:
    """The network's arguments that follow from the images and the task."""
    channels, *size = shape
    values: dict[str, Any] = {
        "spatial_dims": len(size),
        "in_channels": channels,
        "n_input_channels": channels,
        "out_channels": outputs,
        "num_classes": outputs,
        "classes": outputs,
        "img_size": size,
        "in_shape": shape,
        "out_shape": [outputs],
        "pretrained": False,
        "progress": False,
    }
    if name == "ViT":
        if task not in CLASSIFIERS:
            raise ConfigError("plugins.brain.network: ViT gives numbers; use UNETR or ViTAutoEnc for images")
        # A bounded final activation would limit the logits.
        values |= {"classification": True, "post_activation": "none"}
        values["patch_size"] = [next(p for p in (16, 8, 4, 2, 1) if length % p == 0) for length in size]
    if "channels" in known and "strides" in known:
        # Halvings without a remainder that leave at least two voxels of the smallest axis, four at most.
        depth = max([n for n in range(5) if all(s % 2**n == 0 and s >= 2 ** (n + 1) for s in size)])
        channels_given = given.get("channels")
        levels = len(channels_given) if channels_given else max(depth, 1) + 1
        if name in ("AutoEncoder", "VarAutoEncoder"):  # this network halves at every level
            levels = len(channels_given) if channels_given else max(depth, 1)
            values["strides"] = [2] * levels
        else:
            values["strides"] = [2] * (levels - 1)
        values["channels"] = [16 * 2**level for level in range(levels)]
    return {key: value for key, value in values.items() if key in known}


def _make(
    name: str, made: Callable[..., Any], settled: dict[str, Any], given: dict[str, Any], known: set[str]
) -> nn.Module:
    for key in given:
        if key not in known:
            raise ConfigError(
                f"plugins.brain.network_options: {name} has no argument {key!r}{nearest(key, known)}; "
                f"it takes: {', '.join(sorted(known))}"
            )
        if key == "pretrained" and given[key]:
            raise ConfigError(
                "plugins.brain.network_options: pretrained weights are not downloaded; load them from files"
            )
    try:
        network: nn.Module = made(**(settled | given))
    except Exception as error:  # a network may raise anything
        raise ConfigError(f"plugins.brain.network: {name} cannot be made: {error}") from error
    return network


def _parameters(made: Callable[..., Any]) -> set[str]:
    """Names of the arguments; for classes that pass on further arguments, also those of their parents."""
    names: set[str] = set()
    for kind in made.__mro__ if isinstance(made, type) else [made]:
        if kind in (nn.Module, object) or (isinstance(kind, type) and "__init__" not in vars(kind)):
            continue
        parameters = inspect.signature(kind).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _checked(name: str, network: nn.Module, task: str, shape: list[int], outputs: int) -> nn.Module:
    """The network, checked with one image of shapes only; of several results only the first is kept.

    Raises ConfigError if the network fails on the image, or if the result does not fit.
    """
    image = _by(shape[1:])
    network.eval()
    try:
        found = _shapes(network, shape)
        if isinstance(found, tuple | list):
            network, found = FirstOutput(network), found[0]
    except Exception as error:  # as above
        raise ConfigError(
            f"plugins.brain.network: {name} cannot take images of {image} voxels with {shape[0]} channels: {error}; "
            "crop or pad them (transforms), or change network_options"
        ) from error
    wanted = (1, outputs) if task in CLASSIFIERS else (1, outputs, *shape[1:])
    got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if got != wanted:
        raise ConfigError(
            f"plugins.brain.network: {name} makes {got} of one image of {image} voxels, {task} needs {wanted}; crop or "
            "pad the images (transforms), or choose another network or network_options"
        )
    return network.train()


def _shapes(network: nn.Module, shape: list[int]) -> Any:
    state = {key: value.to("meta") for key, value in [*network.named_parameters(), *network.named_buffers()]}
    with torch.no_grad():
        return torch.func.functional_call(network, state, (torch.empty(1, *shape, device="meta"),))


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))
