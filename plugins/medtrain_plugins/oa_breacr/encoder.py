"""The image encoder of OA-BreaCR: a residual network of torchvision without its head, and its pretrained weights."""

from __future__ import annotations

import pickle
from http.client import HTTPException
from pathlib import Path

import torch
from medtrain.errors import CheckpointError, ConfigError, first_lines
from torch import Tensor, nn

from medtrain_plugins.mammography.weights.snapshots import named_tensors, read_file

# The children of torchvision's network that have weights, by their position in the encoder.
NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def resnet_encoder(arch: str) -> tuple[nn.Sequential, int]:
    """A freshly initialised encoder, images (B, 3, H, W) -> (B, C, H/32, W/32), and C.

    Its children are those of torchvision's `arch` in their order, without average pool and classifier.
    """
    from torchvision.models import get_model

    network = get_model(arch, weights=None)
    return nn.Sequential(*list(network.children())[:-2]), network.fc.in_features


def fetch_imagenet(arch: str) -> dict[str, Tensor]:
    """torchvision's ImageNet weights as the encoder's state dict; downloaded once into torch's cache.

    Raises ConfigError if they are not available.
    """
    from torchvision.models import get_model_weights

    weights = get_model_weights(arch)["IMAGENET1K_V1"]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError) as error:
        raise ConfigError(
            f"plugins.oa_breacr.encoder_weights: the ImageNet weights of {arch} could not be fetched ({error}); "
            f"download {weights.url} where there is a network and name the file "
            "(--set oa_breacr.encoder_weights=FILE), or train from scratch (oa_breacr.encoder_weights=none)"
        ) from None
    return _pick(state, arch, weights.url)


def load_encoder(path: Path, arch: str) -> dict[str, Tensor]:
    """The encoder's state dict from a file.

    path: safetensors or a PyTorch file, with torchvision's key names or those of a checkpoint of this model, after any
    prefix; other tensors are ignored.

    Raises CheckpointError if it cannot be read, is not safe to read, or has no such network or several.
    """
    return _pick(named_tensors(read_file(path)), arch, str(path))


def _pick(state: dict[str, Tensor], arch: str, where: str) -> dict[str, Tensor]:
    """The encoder's tensors among those of `state`, under the encoder's own names."""
    with torch.device("meta"):
        expected = resnet_encoder(arch)[0].state_dict()
    candidates = []
    for naming in (str, _torchvision_name):
        own_names = {naming(key): key for key in expected}
        children = {name.split(".")[0] for name in own_names}
        anchor = naming("7.0.conv1.weight")  # every residual network has this key, no other network has
        for prefix in [key.removesuffix(anchor) for key in state if f".{key}".endswith(f".{anchor}")]:
            inside = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            candidates.append({own_names.get(k, k): v for k, v in inside.items() if k.split(".")[0] in children})
    if len(candidates) != 1:
        raise CheckpointError(
            f"{where} holds {len(candidates)} residual networks instead of one: save the encoder alone"
        )
    found = candidates[0]
    problems = [  # files from before torch 0.4.1 lack the number of batches
        f"missing: {key}" for key in expected if key not in found and not key.endswith("num_batches_tracked")
    ]
    problems += [f"unknown: {key}" for key in found if key not in expected]
    problems += [
        f"{key}: {tuple(found[key].shape)}, expected {tuple(tensor.shape)}"
        for key, tensor in expected.items()
        if key in found and found[key].shape != tensor.shape
    ]
    if problems:
        raise CheckpointError(
            f"{where} does not hold the weights of a {arch} (oa_breacr.arch):\n{first_lines(problems)}"
        )
    return found


def _torchvision_name(key: str) -> str:
    child, rest = key.split(".", 1)
    return f"{NAMES[child]}.{rest}"
