"""Weights files of every accepted form give the same tensors; dangerous, damaged and foreign ones are refused.

Official snapshots cannot be shipped, so these tests pickle objects of the same structure with random weights.
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from medtrain.errors import CheckpointError
from medtrain_plugins.mammography.backbone import mirai_backbone
from medtrain_plugins.mammography.registration import MammoRegNet
from medtrain_plugins.mammography.snapshots import load_backbone, load_registration
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18


class CustomResnet(nn.Module):
    pass


class ResNet(nn.Module):
    pass


class Downsampler(nn.Module):
    pass


class BasicBlock(nn.Module):
    pass


class RiskFactorPool(nn.Module):
    pass


FOREIGN = {
    CustomResnet: "onconet.models.custom_resnet",
    ResNet: "onconet.models.resnet_base",
    Downsampler: "onconet.models.resnet_base",
    BasicBlock: "onconet.models.blocks.basic_block",
    RiskFactorPool: "onconet.models.pools.risk_factor_pool",
}


@pytest.fixture(scope="module")
def backbone() -> nn.Sequential:
    torch.manual_seed(3)
    network = mirai_backbone()
    with torch.no_grad():
        for i, buffer in enumerate(network.buffers()):
            buffer.fill_(i)
    return network


@pytest.fixture(scope="module")
def expected(backbone: nn.Sequential) -> dict[str, torch.Tensor]:
    return backbone.state_dict()


def adopt(parent: nn.Module, children: dict[str, nn.Module]) -> nn.Module:
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def snapshot_of(backbone: nn.Sequential) -> nn.Module:
    """The object graph of an official encoder snapshot around the backbone's layers."""
    stem, *blocks = backbone
    names = [f"layer{stage}_{block}" for stage in range(1, 5) for block in range(2)]
    network = adopt(ResNet(), {"downsampler": adopt(Downsampler(), dict(stem.named_children()))})
    adopt(network, {n: adopt(BasicBlock(), dict(b.named_children())) for n, b in zip(names, blocks, strict=True)})
    pool = adopt(RiskFactorPool(), {"density_fc": nn.Linear(512, 4)})
    adopt(network, {"pool": pool, "relu": nn.ReLU(), "dropout": nn.Dropout(), "fc": nn.Linear(612, 2)})
    custom = adopt(CustomResnet(), {"_model": network})
    custom.args = argparse.Namespace(transfomer_hidden_dim=512, devices={0, 1})
    custom.gpu_to_layer_assignments = np.array(["layer1_0", "layer1_1"])
    return custom


@pytest.fixture
def foreign_classes(monkeypatch: pytest.MonkeyPatch):
    """The classes above under the module names of the original project, for as long as a file is written."""
    with monkeypatch.context() as patch:
        for cls, name in FOREIGN.items():
            for parent in ("onconet", "onconet.models", name.rpartition(".")[0]):
                patch.setitem(sys.modules, parent, types.ModuleType(parent))
            module = sys.modules.get(name) or types.ModuleType(name)
            module.__file__ = __file__  # so that legacy files embed source code, as those of 2019 do
            patch.setattr(module, cls.__name__, cls, raising=False)
            patch.setitem(sys.modules, name, module)
            patch.setattr(cls, "__module__", name)
        yield patch


WRAPPINGS = {
    "DataParallel": nn.DataParallel,
    "unwrapped": lambda module: module,
    "dict": lambda module: {"model": module, "epoch": 3},
    "dict of DataParallel": lambda module: {"model": nn.DataParallel(module)},
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_official_snapshots(backbone, expected, foreign_classes, tmp_path, monkeypatch, wrap, zipped):
    path = tmp_path / "mgh_mammo_base.p"
    torch.save(wrap(snapshot_of(backbone)), path, _use_new_zipfile_serialization=zipped)
    foreign_classes.undo()
    assert "onconet.models.resnet_base" not in sys.modules
    if not zipped:
        assert b"class ResNet(nn.Module)" in path.read_bytes()

    monkeypatch.chdir(tmp_path)
    loaded = load_backbone(path)
    assert_same(loaded, expected)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert not any(name.startswith("onconet") for name in sys.modules)


def assert_same(loaded: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(loaded) == list(expected)
    assert len(loaded) == 120
    for key, tensor in expected.items():
        assert torch.equal(loaded[key], tensor), key


def test_state_dicts_of_every_naming(backbone, expected, tmp_path):
    renamed = snapshot_of(backbone).state_dict(prefix="module.")
    torch.save({"state_dict": renamed, "best": 0.7}, tmp_path / "mirai.pth")
    assert_same(load_backbone(tmp_path / "mirai.pth"), expected)

    torch.save(expected, tmp_path / "plain.pth")
    assert_same(load_backbone(tmp_path / "plain.pth"), expected)

    part_of_model = {f"longitudinal_feat_processor.encoder.{key}": tensor for key, tensor in expected.items()}
    save_file(part_of_model | {"view_fc.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    assert_same(load_backbone(tmp_path / "model.safetensors"), expected)


def test_torchvision_weights_give_the_same_network(tmp_path):
    torch.manual_seed(0)
    network = resnet18().eval()
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    backbone = mirai_backbone().eval()
    backbone.load_state_dict(load_backbone(tmp_path / "resnet18.pth"))
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        theirs = nn.Sequential(*list(network.children())[:-2])(x)
        assert torch.equal(backbone(x), theirs)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_pickle_is_refused_before_it_runs(backbone, foreign_classes, tmp_path, zipped):
    module = snapshot_of(backbone)
    module.extra = Hostile(tmp_path / "executed")
    torch.save(module, tmp_path / "snapshot.p", _use_new_zipfile_serialization=zipped)
    foreign_classes.undo()
    with pytest.raises(CheckpointError, match=r"snapshot\.p was not loaded: it asks for \w+\.mkdir"):
        load_backbone(tmp_path / "snapshot.p")
    assert not (tmp_path / "executed").exists()


def test_a_plain_pickle_is_refused_too(tmp_path):
    (tmp_path / "weights.p").write_bytes(pickle.dumps(Hostile(tmp_path / "executed")))
    for load in (load_backbone, load_registration):
        with pytest.raises(CheckpointError, match=r"mkdir"):
            load(tmp_path / "weights.p")
    assert not (tmp_path / "executed").exists()


def test_torch_functions_are_no_way_around(tmp_path):
    """`torch.load` itself would be a way to run anything, and any function of torch.nn is only a shell."""
    for name in ("torch.serialization load", "torch.storage _load_from_bytes", "builtins eval"):
        module, function = name.split()
        payload = f"c{module}\n{function}\n(S'x'\ntR.".encode()
        (tmp_path / "weights.p").write_bytes(payload)
        with pytest.raises(CheckpointError, match=f"asks for {module}.{function}"):
            load_backbone(tmp_path / "weights.p")


def test_an_incomplete_backbone_names_what_is_missing(expected, tmp_path):
    torch.save({k: v for k, v in expected.items() if k != "7.bn2.running_var"}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"119 of 120 tensors found, missing\n  - 7\.bn2\.running_var"):
        load_backbone(tmp_path / "weights.pth")


def test_a_stem_alone_is_no_backbone(backbone, tmp_path):
    torch.save(backbone[0].state_dict(), tmp_path / "stem.pth")
    with pytest.raises(CheckpointError, match="6 of 120"):
        load_backbone(tmp_path / "stem.pth")


def test_two_backbones_are_ambiguous(expected, tmp_path):
    both = {f"{name}.{key}": tensor for name in ("a", "b") for key, tensor in expected.items()}
    torch.save(both, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"2 backbones, under 'a\.', 'b\.'"):
        load_backbone(tmp_path / "weights.pth")


def test_other_shapes_are_named(expected, tmp_path):
    save_file(expected | {"0.conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.safetensors")
    with pytest.raises(CheckpointError, match=r"0\.conv1\.weight: \(64, 1, 7, 7\), expected \(64, 3, 7, 7\)"):
        load_backbone(tmp_path / "grey.safetensors")


def test_damaged_and_missing_files(expected, tmp_path):
    with pytest.raises(CheckpointError, match="no weights file at"):
        load_backbone(tmp_path / "nowhere.pth")
    save_file(expected, tmp_path / "cut.safetensors")
    torch.save(expected, tmp_path / "cut.pth")
    for path in (tmp_path / "cut.safetensors", tmp_path / "cut.pth"):
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=path.name):
            load_backbone(path)
    (tmp_path / "text.txt").write_text("not weights at all")
    with pytest.raises(CheckpointError, match="neither safetensors nor"):
        load_backbone(tmp_path / "text.txt")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/data.pkl", pickle.dumps({}))
        archive.writestr("program/constants.pkl", pickle.dumps(()))
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_backbone(tmp_path / "program.pt")


def test_registration_weights(tmp_path):
    state = MammoRegNet().state_dict()
    save_file(state, tmp_path / "model.safetensors")
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "parallel.pth")
    for name in ("model.safetensors", "parallel.pth"):
        loaded = load_registration(tmp_path / name)
        assert list(loaded) == list(state)
        assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def test_only_a_leading_module_is_dropped(tmp_path):
    state = {f"sub{'module.'}{key}": tensor for key, tensor in MammoRegNet().state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"does not hold the weights of a MammoRegNet:\n  - missing: "):
        load_registration(tmp_path / "weights.pth")
