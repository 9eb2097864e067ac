"""The pretrained transformer: official snapshots, state dicts, runs; what does not fit is named.

Official snapshots cannot be shipped: these tests pickle an object of the same structure with random weights.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path

import pytest
import torch
from medtrain.errors import CheckpointError
from medtrain_plugins.mirai.model import AllImageTransformer, MiraiModel
from medtrain_plugins.mirai.weights import load_transformer
from safetensors.torch import save_file
from torch import nn

SIZES = {"in_features": 512, "hidden_dim": 16, "num_layers": 2, "num_heads": 4, "risk_factors": True}
MASK, OFFICIAL_MASK = "prob_of_failure_layer.triangular_mask", "prob_of_failure_layer.upper_triagular_mask"


class Part(nn.Module):
    """Any module of an official snapshot."""


@pytest.fixture
def trained() -> AllImageTransformer:
    torch.manual_seed(1)
    return AllImageTransformer(**SIZES)


@pytest.fixture
def fresh() -> AllImageTransformer:
    torch.manual_seed(2)
    return AllImageTransformer(**SIZES)


def official_state(trained: AllImageTransformer) -> dict[str, torch.Tensor]:
    """With the official name of the mask, and a classifier of two classes."""
    state = dict(trained.state_dict())
    state[OFFICIAL_MASK] = state.pop(MASK)
    return state | {"fc.weight": torch.zeros(2, 116), "fc.bias": torch.zeros(2)}


def snapshot(trained: AllImageTransformer, path: Path, num_heads: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole pickled module, the arguments of its training within."""
    name = "onconet.models.hiddens_transfomer"
    foreign = types.ModuleType(name)
    foreign.Part = Part  # type: ignore[attr-defined]
    monkeypatch.setattr(Part, "__module__", name)
    for part in ("onconet", "onconet.models"):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    monkeypatch.setitem(sys.modules, name, foreign)
    root = Part()
    root.args = argparse.Namespace(num_heads=num_heads)
    for key, tensor in official_state(trained).items():
        *parents, leaf = key.split(".")
        module: nn.Module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, Part())
            module = module.get_submodule(parent)
        module.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    torch.save(nn.DataParallel(root), path)
    return path


def same(a: AllImageTransformer, b: AllImageTransformer) -> bool:
    torch.manual_seed(0)
    x, places = torch.randn(2, 4, 512), [torch.zeros(2, 4, dtype=torch.int64)] * 3
    with torch.no_grad():
        return torch.equal(a.eval()(x, *places)["logit"], b.eval()(x, *places)["logit"])


def test_from_a_snapshot(trained, fresh, tmp_path, monkeypatch):
    path = snapshot(trained, tmp_path / "snapshot.p", 4, monkeypatch)
    assert not same(trained, fresh)
    load_transformer(path, fresh)
    assert same(trained, fresh)
    path = snapshot(trained, tmp_path / "other.p", 8, monkeypatch)
    with pytest.raises(CheckpointError, match="trained with 8 attention heads, not 4"):
        load_transformer(path, fresh)


def test_from_state_dicts_of_any_extent(trained, fresh, tmp_path):
    whole = MiraiModel(**{k: v for k, v in SIZES.items() if k != "in_features"})
    whole.transformer.load_state_dict(trained.state_dict())
    forms = {"plain.pt": official_state(trained), "whole.pt": whole.state_dict()}
    for name, state in forms.items():
        torch.save(state, tmp_path / name)
    save_file({f"module.{key}": tensor for key, tensor in trained.state_dict().items()}, tmp_path / "own.safetensors")
    for name in (*forms, "own.safetensors"):
        torch.manual_seed(2)
        target = AllImageTransformer(**SIZES)
        load_transformer(tmp_path / name, target)
        assert same(trained, target), name


def test_what_does_not_fit_is_named(trained, fresh, tmp_path):
    path = tmp_path / "weights.pt"

    def refused(state: object, match: str, target: AllImageTransformer = fresh) -> None:
        torch.save(state, path)
        before = {key: tensor.clone() for key, tensor in target.state_dict().items()}
        with pytest.raises(CheckpointError, match=match):
            load_transformer(path, target)
        assert all(torch.equal(before[key], tensor) for key, tensor in target.state_dict().items())

    state = official_state(trained)
    refused({"a": torch.zeros(1)}, "holds 0 transformers")
    refused({"a": state, "b": state | {"extra": torch.zeros(1)}}, "holds 2 transformers")
    refused(
        {k: v for k, v in state.items() if k != "pool.age_fc.bias"},
        r"risk_factors must be.*\n.*age_fc\.bias is missing",
    )
    refused(state, r"\(16, 512\), expected \(24, 512\)", AllImageTransformer(**SIZES | {"hidden_dim": 24}))
    refused(state, "transformer_layer_1.* of no use", AllImageTransformer(**SIZES | {"num_layers": 1}))
    plain = AllImageTransformer(**SIZES | {"risk_factors": False})
    refused(state, "attention_fc.weight is missing", plain)
