"""Weights in files: which ones a path stands for, what is noted with them, and that every key is accounted for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import medtrain
import pytest
import torch
from medtrain import TensorModel, Trainer, hookimpl
from medtrain.config import RunConfig
from medtrain.errors import CheckpointError, ConfigError, UsageError
from medtrain.plugins import Plugins, check
from medtrain.protocols.model import load_state
from medtrain.protocols.weights import Weights
from medtrain.rundir.resolve import checkpoint_of
from medtrain.weights import read_about, read_model, read_state, read_weights, weights_file
from medtrain_plugins.results.weights_files import inspect, note, note_of, write, write_pickle
from safetensors.torch import save_file
from torch import nn


def net() -> nn.Module:
    return medtrain.build_model("toy_plugin")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def run(toy_run: Callable[..., Path]) -> Path:
    return toy_run("plugins.toy_plugin.dropout=0.25", "checkpoint.every_n_epochs=1")


def test_the_checkpoint_a_path_stands_for(run: Path) -> None:
    split = run / "split-0"
    assert checkpoint_of(run) == checkpoint_of(split) == split / "best-fit"
    assert checkpoint_of(run, "last") == checkpoint_of(split / "best-fit", "last") == split / "last"
    assert checkpoint_of(split / "epoch-0001") == split / "epoch-0001"
    with pytest.raises(CheckpointError, match=r"no checkpoint 'lost'; there are: .*epoch-0001.*last"):
        checkpoint_of(run, "lost")
    with pytest.raises(UsageError, match="neither a run directory nor inside one"):
        checkpoint_of(run.parent)
    assert weights_file(str(run), "key") == split / "best-fit" / "model.safetensors"


def test_without_a_best_checkpoint_the_last(toy_run: Callable[..., Path]) -> None:
    assert checkpoint_of(toy_run("checkpoint.best=false")).name == "last"


def test_a_run_gives_its_weights_and_options(run: Path) -> None:
    expected = read_state(run / "split-0" / "best-fit" / "model.safetensors")
    for path in (
        run,
        run / "split-0",
        run / "split-0" / "best-fit",
        run / "split-0" / "best-fit" / "model.safetensors",
    ):
        model = medtrain.build_model("toy_plugin", weights=path)
        assert same(model.state_dict(), expected)
        assert model[2].p == 0.25
    assert medtrain.build_model("toy_plugin", weights=run, dropout=0.5)[2].p == 0.5


def test_a_checkpoint_away_from_its_run(run: Path, tmp_path: Path) -> None:
    moved = (run / "split-0" / "last").rename(tmp_path / "moved")
    assert medtrain.build_model("toy_plugin", weights=moved)[2].p == 0.25
    assert note_of(read_model(moved))["source"][0]["file"] == "moved/model.safetensors"


def test_a_damaged_checkpoint_is_passed_over_or_refused(run: Path) -> None:
    (run / "split-0" / "best-fit" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not match its checksum"):
        medtrain.build_model("toy_plugin", weights=run)


def test_the_moving_average_is_what_a_run_gives(toy_run: Callable[..., Path]) -> None:
    run = toy_run("optimization.ema_decay=0.9", "checkpoint.best=false")
    averaged = read_state(run / "split-0" / "last" / "model.safetensors")
    assert same(read_model(run).weights.state, averaged)


def test_export_and_build_again(run: Path, tmp_path: Path) -> None:
    exported = read_model(run)
    assert exported.run is not None and exported.run.path.name == "run"
    assert (exported.path.name, exported.plugin) == ("best-fit", "toy_plugin")
    write(tmp_path / "a.safetensors", exported.weights.state, note_of(exported))
    write_pickle(tmp_path / "a.pth", exported.weights.state)
    for name in ("a.safetensors", "a.pth"):
        assert same(medtrain.build_model("toy_plugin", weights=tmp_path / name).state_dict(), exported.weights.state)
    assert medtrain.build_model("toy_plugin", weights=tmp_path / "a.safetensors")[2].p == 0.25
    noted = read_about(tmp_path / "a.safetensors")
    assert noted is not None and noted["source"][0]["file"] == "run/split-0/best-fit/model.safetensors"
    # Equal weights are equal files.
    write(tmp_path / "b.safetensors", exported.weights.state, note_of(exported))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_folders_of_this_machine_are_not_given_away(tmp_path: Path) -> None:
    options = {"encoder": str(tmp_path / "mirai.p"), "relative": "weights/x.p", "size": [1, 2]}
    assert note("p", options, [])["options"] == {"encoder": "mirai.p", "relative": "weights/x.p", "size": [1, 2]}


def test_tied_weights_are_written_under_each_name(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    write(tmp_path / "x.safetensors", {"a": shared, "b": shared, "c": shared.T}, None)
    found = read_state(tmp_path / "x.safetensors")
    assert torch.equal(found["a"], shared) and torch.equal(found["b"], shared) and torch.equal(found["c"], shared.T)


def test_plain_files_of_every_kind(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(state, tmp_path / "bare.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "dict.pth")
    torch.save({"model": {"state_dict": {f"module.{k}": v for k, v in state.items()}}}, tmp_path / "parallel.pth")
    save_file({f"_orig_mod.{k}": v for k, v in state.items()}, tmp_path / "compiled.weights")
    for path in tmp_path.iterdir():
        assert same(medtrain.build_model("toy_plugin", weights=path).state_dict(), state), path
        assert inspect(path).about is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], r"not a state dict \(tensors by name\) but list"),
        ({}, "not a state dict"),
        ({"a": torch.zeros(1), "b": 3}, "under 'b' is no tensor but int"),
        ({3: torch.zeros(1)}, "not a state dict: under 3"),
    ],
)
def test_what_is_no_state_dict(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=message):
        medtrain.build_model("toy_plugin", weights=tmp_path / "x.pth")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "cut.safetensors")
    content = (tmp_path / "cut.safetensors").read_bytes()
    for cut in (-10, 50):
        (tmp_path / "cut.safetensors").write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors: damaged"):
            medtrain.build_model("toy_plugin", weights=tmp_path / "cut.safetensors")
    for text in ("", "not weights"):
        (tmp_path / "text.pth").write_text(text)
        with pytest.raises(ConfigError, match="not a plain state dict, and nothing else is loaded"):
            medtrain.build_model("toy_plugin", weights=tmp_path / "text.pth")
    with pytest.raises(UsageError, match=r"`medtrain weights import PLUGIN .*` may know how to read it"):
        inspect(tmp_path / "text.pth")
    with pytest.raises(ConfigError, match="there is no such weights file"):
        medtrain.build_model("toy_plugin", weights=tmp_path / "none.pth")
    save_file({"a": torch.zeros(1)}, tmp_path / "noted.safetensors", metadata={"medtrain": "{"})
    with pytest.raises(CheckpointError, match="metadata 'medtrain' is not JSON"):
        medtrain.build_model("toy_plugin", weights=tmp_path / "noted.safetensors")


def test_every_key_is_accounted_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = {**before, "0.weight": torch.zeros(3, 2), "extra": torch.zeros(1)}
    del state["1.running_mean"]
    with pytest.raises(CheckpointError) as caught:
        load_state(model, state, "file")
    assert str(caught.value) == (
        "file: the weights do not fit this model: Missing keys (1):\n  - 1.running_mean\nUnknown keys (1):\n  - extra\n"
        "Other shapes (1):\n  - 0.weight: (3, 2), the model has (2, 2)"
    )
    assert same(dict(model.state_dict()), before)


def test_a_prefix_is_dropped_only_from_all_keys_and_only_when_it_is_foreign() -> None:
    model = nn.Module()
    model.module = nn.Linear(1, 1)
    model.submodule = nn.Module()
    model.submodule.module = nn.Linear(1, 1)
    state = {key: torch.full_like(tensor, 7) for key, tensor in model.state_dict().items()}
    load_state(model, state, "own")
    load_state(model, {f"module.{key}": tensor + 1 for key, tensor in state.items()}, "wrapped")
    assert all(bool((tensor == 8).all()) for tensor in model.state_dict().values())
    with pytest.raises(CheckpointError, match=r"Unknown keys \(1\):\n  - module\.submodule\.module\.bias"):
        partly = {key.replace("submodule.module.bias", "module.submodule.module.bias"): t for key, t in state.items()}
        load_state(model, partly, "partly wrapped")


def test_other_precisions_become_the_models(tmp_path: Path) -> None:
    model = net()
    save_file({key: tensor.double() for key, tensor in model.state_dict().items()}, tmp_path / "x.safetensors")
    found = medtrain.build_model("toy_plugin", weights=tmp_path / "x.safetensors")
    assert same(found.state_dict(), model.state_dict())


class Foreign:
    """A plugin that reads files of its own, each line a number of a bias."""

    name = "foreign"

    @hookimpl
    def build_model(self) -> nn.Module:
        return nn.Linear(1, 3)

    @hookimpl
    def import_weights(self, config: RunConfig, paths: list[Path]) -> Weights | None:
        if any(path.suffix != ".txt" for path in paths):
            return None
        numbers = [float(line) for path in paths for line in path.read_text().split()]
        return Weights({"weight": torch.zeros(3, 1), "bias": torch.tensor(numbers)}, notes=["Zeros."])


def test_a_plugin_reads_files_of_its_own(tmp_path: Path) -> None:
    plugins = Plugins([check("foreign", Foreign())])
    (tmp_path / "a.txt").write_text("1 2")
    (tmp_path / "b.txt").write_text("3")
    found = read_weights(plugins, "foreign", RunConfig(), [tmp_path / "a.txt", tmp_path / "b.txt"])
    assert found.state["bias"].tolist() == [1, 2, 3] and found.notes == ["Zeros."]
    # What it does not know, and what medtrain wrote itself, the core reads.
    torch.save(found.state, tmp_path / "x.pth")
    assert same(read_weights(plugins, "foreign", RunConfig(), [tmp_path / "x.pth"]).state, found.state)
    write(tmp_path / "y.safetensors", found.state, {"plugin": "other", "options": {"size": 3}, "source": []})
    other = read_weights(plugins, "foreign", RunConfig(), [tmp_path / "y.safetensors"])
    assert other.options == {} and other.notes == ["y.safetensors was made for the plugin 'other'."]
    with pytest.raises(UsageError, match="foreign reads weights from one file at a time, not from 2"):
        read_weights(plugins, "foreign", RunConfig(), [tmp_path / "x.pth", tmp_path / "y.safetensors"])


def test_the_trainer_of_given_objects_has_weights_too(tmp_path: Path) -> None:
    made = Trainer(tmp_path / "run", TensorModel(net(), "features"), plugins=["toy_plugin"])
    run = made.train().maps
    noted = note_of(read_model(run))
    assert noted["plugin"] == "toy_plugin" and json.dumps(noted)
