"""Weights files of every accepted form give the same tensors; damaged, incomplete and foreign ones are refused."""

from __future__ import annotations

import sys
import zipfile

import pytest
import torch
from medtrain.errors import CheckpointError
from medtrain_plugins.mammography.model.backbone import mirai_backbone
from medtrain_plugins.mammography.model.registration import MammoRegNet
from medtrain_plugins.mammography.weights.snapshots import load_backbone, load_registration
from mirai_files import WRAPPINGS, encoder_of, foreign_names
from safetensors.torch import save_file
from torch import nn
from torchvision.models import resnet18


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


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_official_snapshots(backbone, expected, tmp_path, monkeypatch, wrap, zipped):
    path = tmp_path / "mgh_mammo_base.p"
    with foreign_names():
        torch.save(wrap(encoder_of(backbone)), path, _use_new_zipfile_serialization=zipped)
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
    renamed = encoder_of(backbone).state_dict(prefix="module.")
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
        archive.writestr("program/data.pkl", b"}.")
        archive.writestr("program/constants.pkl", b").")
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
