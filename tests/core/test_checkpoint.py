"""Checkpoints: whole and verified, or not there; no pickle anywhere."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.errors import CheckpointError
from medtrain.rundir import checkpoint
from medtrain.rundir.checkpoint import Checkpoint
from torch import nn


def made(step: int = 1, value: float = 1.0) -> Checkpoint:
    return Checkpoint(
        {"w": torch.full((3,), value)}, {"n": step}, {"step": step, "epoch": 0}, {"config.toml": "a = 1\n"}
    )


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    state: dict[str, Any] = {
        "none": None,
        "yes": True,
        "int": -3,
        "float": 0.1,
        "nan": math.nan,
        "infinities": [math.inf, -math.inf],
        "text": "ä",
        "list": [1, [2.5, "x"], {}],
        "tuple": (1, (2, torch.tensor(3))),
        "numbered": {0: {"exp_avg": torch.arange(3.0)}, 1: {"step": torch.tensor(4.0)}},
        "odd keys": {"$tensor": "not one", "plain": 1},
        "tensor/with/slashes": torch.tensor([True, False]),
        "types": [torch.zeros(2, dtype=d) for d in (torch.bfloat16, torch.float16, torch.int64, torch.uint8)],
        "empty": torch.zeros(0, 3),
    }
    written = Checkpoint({"w": torch.ones(2)}, state, {"step": 5, "note": "x"}, {"split.json": "{}"})
    checkpoint.write(tmp_path / "last", written)
    found = checkpoint.read(tmp_path / "last")
    assert found.facts == {"step": 5, "note": "x"}
    assert found.texts == {"split.json": "{}"}
    assert math.isnan(found.state.pop("nan")) and math.isnan(state.pop("nan"))
    assert repr(found.state) == repr(state)
    assert [t.dtype for t in found.state["types"]] == [t.dtype for t in state["types"]]


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/plugin/thing: object cannot be stored"):
        checkpoint.write(tmp_path / "last", Checkpoint({}, {"plugin": {"thing": object()}}, {}, {}))
    assert not (tmp_path / "last").exists()


def test_tied_weights_are_stored_once_and_restored(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    checkpoint.write(tmp_path / "last", Checkpoint(net.state_dict(), {}, {}, {}))
    from safetensors import safe_open

    with safe_open(tmp_path / "last" / "model.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"0.weight", "0.bias", "1.bias"}
    found = checkpoint.read(tmp_path / "last").model
    assert set(found) == set(net.state_dict())
    assert torch.equal(found["1.weight"], net[0].weight)


def test_views_and_memory_formats_are_made_contiguous(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    model = {"half": base[:, ::2], "first": base[0], "transposed": base.t(), "image": image}
    checkpoint.write(tmp_path / "last", Checkpoint(model, {"again": base.t()}, {}, {}))
    found = checkpoint.read(tmp_path / "last")
    for name, tensor in model.items():
        assert torch.equal(found.model[name], tensor)
        assert found.model[name].is_contiguous()
    assert torch.equal(found.state["again"], base.t())


def test_only_safetensors_and_text_are_written(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "last", made())
    for path in (tmp_path / "last").iterdir():
        head = path.read_bytes()[:9]
        if path.suffix == ".safetensors":
            assert head[8:9] == b"{", path
        else:
            path.read_text(encoding="utf-8")
        assert not head.startswith((b"\x80", b"PK")), path


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json", "config.toml"])
def test_a_damaged_file_is_named_and_the_predecessor_used(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "last"
    checkpoint.write(folder, made(1))
    checkpoint.write(folder, made(2))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=f"damaged: {name} does not match its checksum"):
        checkpoint.read(folder)
    found, problems = checkpoint.read_newest(folder)
    assert found.facts["step"] == 1
    assert len(problems) == 1 and name in problems[0]


def test_missing_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    checkpoint.write(folder, made())
    (folder / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"damaged: state\.json is missing"):
        checkpoint.read(folder)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint:\n  - .*state\.json is missing"):
        checkpoint.read_newest(folder)
    (folder / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"not a checkpoint: checkpoint\.json is missing"):
        checkpoint.read(folder)
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        checkpoint.read_newest(tmp_path / "none")


def test_manifests_that_cannot_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    checkpoint.write(folder, made())
    manifest = json.loads((folder / "checkpoint.json").read_text())
    (folder / "checkpoint.json").write_text(json.dumps(manifest | {"schema": 7}))
    with pytest.raises(CheckpointError, match="checkpoint schema 7, this medtrain reads 1"):
        checkpoint.read(folder)
    (folder / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged: checkpoint\.json"):
        checkpoint.read(folder)


def test_a_file_that_is_no_safetensors_under_its_own_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    checkpoint.write(folder, made())
    (folder / "model.safetensors").write_bytes(b"\x80\x04N.")
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["sha256"]["model.safetensors"] = checkpoint.sha256(folder / "model.safetensors")
    (folder / "checkpoint.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.read(folder)


@pytest.mark.parametrize("crash_at", [1, 2])
def test_a_crash_between_the_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_at: int) -> None:
    """1: before the old one steps aside; 2: the old one is aside, the new one not yet in place."""
    folder = tmp_path / "last"
    checkpoint.write(folder, made(1))
    checkpoint.write(folder, made(2))
    rename, count = Path.rename, 0

    def crashing(self: Path, target: Any) -> Path:
        nonlocal count
        count += 1
        if count == crash_at:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crashing)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write(folder, made(3))
    found, problems = checkpoint.read_newest(folder)
    assert found.facts["step"] == {1: 2, 2: 3}[crash_at]
    assert problems == []
    checkpoint.write(folder, made(4))
    assert checkpoint.read(folder).facts["step"] == 4
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["last"]


def test_a_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    folder = tmp_path / "last"
    checkpoint.write(folder, made(1))
    (tmp_path / ".last.new").mkdir()
    (tmp_path / ".last.new" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.read_newest(folder)[0].facts["step"] == 1
    checkpoint.write(folder, made(2))
    assert checkpoint.read(folder).facts["step"] == 2


def test_a_second_name_shares_the_files(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "last", made(1))
    checkpoint.link(tmp_path / "last", tmp_path / "best-fit")
    assert (tmp_path / "last" / "model.safetensors").samefile(tmp_path / "best-fit" / "model.safetensors")
    checkpoint.write(tmp_path / "last", made(2))
    assert checkpoint.read(tmp_path / "best-fit").facts["step"] == 1
    checkpoint.link(tmp_path / "last", tmp_path / "best-fit")
    assert checkpoint.read(tmp_path / "best-fit").facts["step"] == 2
    assert not checkpoint.predecessor(tmp_path / "best-fit").exists()


def test_a_second_name_on_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Any, target: Any) -> None:
        raise OSError("no links here")

    checkpoint.write(tmp_path / "last", made(1))
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.link(tmp_path / "last", tmp_path / "best-fit")
    assert checkpoint.read(tmp_path / "best-fit").facts["step"] == 1


def test_checkpoints_are_listed_by_step_and_removed(tmp_path: Path) -> None:
    for name, step in (("epoch-0002", 8), ("last", 9), ("step-00000004", 4)):
        checkpoint.write(tmp_path / name, made(step))
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["step-00000004", "epoch-0002", "last"]
    checkpoint.remove(tmp_path / "epoch-0002")
    checkpoint.remove(tmp_path / "never-there")
    assert [path.name for path in checkpoint.folders(tmp_path)] == ["step-00000004", "last"]
