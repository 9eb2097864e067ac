"""Files as the original Mirai project saves them: whole pickled modules, of classes made up here.

The official files cannot be shipped, so tests pickle objects of the same structure with weights of their own.
"""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

MODELS = "onconet.models"
PLACES = {
    "CustomResnet": f"{MODELS}.custom_resnet",
    "ResNet": f"{MODELS}.resnet_base",
    "Downsampler": f"{MODELS}.resnet_base",
    "BasicBlock": f"{MODELS}.blocks.basic_block",
    "RiskFactorPool": f"{MODELS}.pools.risk_factor_pool",
    "Simple_AttentionPool": f"{MODELS}.pools.attention_pool",
    "GlobalMaxPool": f"{MODELS}.pools.max_pool",
    "Cumulative_Probability_Layer": f"{MODELS}.cumulative_probability_layer",
    "AllImageTransformer": f"{MODELS}.hiddens_transfomer",
    "Transformer": f"{MODELS}.hiddens_transfomer",
    "TransformerLayer": f"{MODELS}.hiddens_transfomer",
    "MultiHead_Attention": f"{MODELS}.hiddens_transfomer",
}
# Where our class has another name than theirs.
THEIRS = {"MultiHeadAttention": "MultiHead_Attention", "CumulativeProbabilityLayer": "Cumulative_Probability_Layer"}


class ResNet(nn.Module):
    """The one with source code, which files of the older form embed."""


FOREIGN = {name: ResNet if name == "ResNet" else type(name, (nn.Module,), {}) for name in PLACES}
WRAPPINGS = {
    "DataParallel": nn.DataParallel,
    "unwrapped": lambda module: module,
    "dict": lambda module: {"model": module, "epoch": 3},
    "dict of DataParallel": lambda module: {"model": nn.DataParallel(module)},
}


@contextmanager
def foreign_names() -> Iterator[None]:
    """The classes above under the module names of the original project, for as long as a file is written."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch misses the source code of most
        for name in ("onconet", MODELS, f"{MODELS}.blocks", f"{MODELS}.pools", *PLACES.values()):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        for name, place in PLACES.items():
            sys.modules[place].__file__ = __file__  # so that files of the older form embed source code
            setattr(sys.modules[place], name, FOREIGN[name])
            patch.setattr(FOREIGN[name], "__module__", place)
        yield


def adopt(parent: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def encoder_of(backbone: nn.Sequential) -> nn.Module:
    """The object graph of an official encoder file around the backbone's layers."""
    stem, *blocks = backbone
    names = [f"layer{stage}_{block}" for stage in range(1, 5) for block in range(2)]
    network = adopt(FOREIGN["ResNet"](), {"downsampler": adopt(FOREIGN["Downsampler"](), dict(stem.named_children()))})
    residual = [adopt(FOREIGN["BasicBlock"](), dict(block.named_children())) for block in blocks]
    adopt(network, dict(zip(names, residual, strict=True)))
    hazards = adopt(
        FOREIGN["Cumulative_Probability_Layer"](),
        {"hazard_fc": nn.Linear(612, 5), "base_hazard_fc": nn.Linear(612, 1)},
    )
    hazards.upper_triagular_mask = nn.Parameter(torch.ones(5, 5).triu(), requires_grad=False)
    pool = adopt(FOREIGN["RiskFactorPool"](), {"density_fc": nn.Linear(512, 4)})
    adopt(network, {"pool": pool, "relu": nn.ReLU(), "dropout": nn.Dropout(), "fc": nn.Linear(612, 2)})
    adopt(network, {"prob_of_failure_layer": hazards})
    custom = adopt(FOREIGN["CustomResnet"](), {"_model": network})
    custom.args = argparse.Namespace(transfomer_hidden_dim=512, devices={0, 1})
    custom.gpu_to_layer_assignments = np.array(["layer1_0", "layer1_1"])
    return custom


def transformer_of(module: nn.Module, **arguments: Any) -> nn.Module:
    """The object graph of an official transformer file around our aggregator; arguments: those it was trained with."""
    official = _theirs(module)
    official.args = argparse.Namespace(**arguments)
    return official


def _theirs(module: nn.Module) -> nn.Module:
    name = type(module).__name__
    if type(module).__module__.startswith("torch.nn."):
        return module
    made = FOREIGN[THEIRS.get(name, name)]()
    persistent = module.state_dict()
    for key, child in module.named_children():
        made.add_module(key, _theirs(child))
    for key, parameter in module.named_parameters(recurse=False):
        made.register_parameter(key, parameter)
    for key, buffer in module.named_buffers(recurse=False):
        if key == "triangular_mask":
            made.register_parameter("upper_triagular_mask", nn.Parameter(buffer, requires_grad=False))
        elif key in persistent:
            made.register_buffer(key, buffer)
    return made


def in_zip(payload: bytes) -> bytes:
    """A pickle as the file of `torch.save` it could be."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return file.getvalue()


def in_old_form(payload: bytes) -> bytes:
    """The same in the older form."""
    head = [pickle.dumps(value, 2) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": True})]
    return b"".join([*head, payload, pickle.dumps([], 2)])


def text(value: str) -> bytes:
    """The opcode that pushes a string."""
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content
