"""Weights of other projects end up in our models, complete and with the options they need, or are refused by key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import medtrain
import numpy as np
import pytest
import torch
from medtrain.errors import CheckpointError
from medtrain_cli.main import main
from medtrain_plugins.mammography.weights.import_weights import import_risk_weights
from medtrain_plugins.mammography.weights.snapshots import load_backbone
from mirai_files import WRAPPINGS, encoder_of, foreign_names, in_old_form, in_zip, text, transformer_of
from safetensors import safe_open
from torch import nn

GOLDEN = Path(__file__).parents[2] / "golden"
Keys = dict[str, tuple[int, ...]]

# Kept small: the width of the transformer is one of the options that are read from the file.
SMALL: dict[str, Any] = {"hidden_dim": 24, "num_layers": 2, "num_heads": 3}
ARGUMENTS = {"num_heads": 3, "num_layers": 2, "transfomer_hidden_dim": 24, "dropout": 0.1}
OFFICIAL = SMALL | {"input_norm": "mirai", "orientation": "mirai", "pool": "Simple_AttentionPool"}


def made(**options: Any) -> nn.Module:
    """A Mirai with weights of its own, buffers included."""
    model = medtrain.build_model("mirai", **options)
    for number, (name, buffer) in enumerate(model.image_encoder.named_buffers()):
        if "running" in name:
            buffer.fill_(number + 1)
    return model


@pytest.fixture(scope="module")
def mirai() -> nn.Module:
    return made(**SMALL)


@pytest.fixture
def files(mirai: nn.Module, tmp_path: Path) -> Callable[..., list[Path]]:
    """`files(wrap, zipped)` saves a Mirai as the two official files."""

    def save(
        wrap: Any = nn.DataParallel, zipped: bool = True, model: nn.Module = mirai, **arguments: Any
    ) -> list[Path]:
        paths = [tmp_path / "encoder.p", tmp_path / "transformer.p"]
        parts = [encoder_of(model.image_encoder), transformer_of(model.transformer, **{**ARGUMENTS, **arguments})]
        with foreign_names():
            for path, part in zip(paths, parts, strict=True):
                torch.save(wrap(part), path, _use_new_zipfile_serialization=zipped)
        return paths

    return save


def assert_same(loaded: nn.Module, wanted: nn.Module) -> None:
    expected = wanted.state_dict()
    found = loaded.state_dict()
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old form"])
def test_the_two_official_files_are_one_mirai(files: Any, mirai: nn.Module, wrap: Any, zipped: bool) -> None:
    encoder, transformer = files(wrap, zipped)
    weights = import_risk_weights([encoder, transformer], "image_encoder")
    assert weights.options == {**OFFICIAL, "risk_factors": False}
    assert weights.notes == [
        "9 tensors of encoder.p are left out: they served to train the encoder (pool.*, fc.*, prob_of_failure_layer.*)."
    ]
    assert sum(key.startswith("image_encoder.") for key in weights.state) == 120
    # In any order; the width and the heads come from the file.
    loaded = medtrain.build_model("mirai", weights=[transformer, encoder])
    assert_same(loaded, mirai)
    assert loaded.transformer.transformer.transformer_layer_1.multihead_attention.num_heads == 3
    assert loaded.input_norm == "mirai"


def test_state_dicts_of_the_official_modules(mirai: nn.Module, tmp_path: Path, caplog: Any) -> None:
    encoder, transformer = tmp_path / "encoder.pth", tmp_path / "transformer.pth"
    with foreign_names():
        torch.save(encoder_of(mirai.image_encoder).state_dict(prefix="module."), encoder)
        torch.save({"state_dict": transformer_of(mirai.transformer).state_dict()}, transformer)
    weights = import_risk_weights([encoder, transformer], "image_encoder")
    assert "num_heads" not in weights.options
    assert "transformer.pth does not tell the number of attention heads: --set mirai.num_heads=N" in weights.notes[-1]
    loaded = medtrain.build_model("mirai", weights=[encoder, transformer], num_heads=3)
    assert_same(loaded, mirai)
    assert not caplog.records


def test_both_in_one_module(mirai: nn.Module, tmp_path: Path) -> None:
    with foreign_names():
        whole = nn.ModuleDict(
            {"image_encoder": encoder_of(mirai.image_encoder), "transformer": transformer_of(mirai.transformer)}
        )
        torch.save({"model": whole}, tmp_path / "whole.p")
    assert_same(medtrain.build_model("mirai", weights=tmp_path / "whole.p", num_heads=3), mirai)


def factor_names(model: nn.Module) -> list[str]:
    return [name.removesuffix("_fc") for name, _ in model.transformer.pool.named_children() if name.endswith("_fc")]


def test_a_transformer_with_risk_factors(files: Any) -> None:
    wanted = made(risk_factors=True, **SMALL)
    names = factor_names(wanted)
    encoder, transformer = files(model=wanted, risk_factor_keys=names)
    weights = import_risk_weights([encoder, transformer], "image_encoder", names)
    assert weights.options == {**OFFICIAL, "risk_factors": True}
    assert weights.state["transformer.prob_of_failure_layer.hazard_fc.weight"].shape == (5, 124)
    loaded = medtrain.build_model("mirai", weights=[encoder, transformer])
    assert_same(loaded, wanted)
    assert len(names) == 34


def test_risk_factors_in_another_order_are_refused(files: Any) -> None:
    """Their numbers are concatenated: the same keys and shapes would give other risks."""
    wanted = made(risk_factors=True, **SMALL)
    names = factor_names(wanted)
    swapped = [names[1], names[0], *names[2:]]
    with pytest.raises(
        CheckpointError, match=r"34 risk factors, binary_family_history, density, .*in this order: dens"
    ):
        import_risk_weights(files(model=wanted, risk_factor_keys=swapped), "image_encoder", names)


def test_pools_without_weights_are_known_by_their_class(files: Any) -> None:
    wanted = made(pool="GlobalMaxPool", **SMALL)
    loaded = medtrain.build_model("mirai", weights=files(model=wanted))
    assert_same(loaded, wanted)
    assert type(loaded.transformer.pool).__name__ == "GlobalMaxPool"


def test_given_options_win_and_contradictions_are_told(files: Any, caplog: Any) -> None:
    paths = files()
    loaded = medtrain.build_model("mirai", weights=paths, num_heads=4, input_norm="none")
    assert loaded.input_norm == "none"
    assert [record.message for record in caplog.records] == [
        "num_heads=4 as given, though the weights were made with 3",
        "input_norm=none as given, though the weights were made with mirai",
    ]
    with pytest.raises(
        CheckpointError, match=r"(?s)Other shapes.*layer\.weight: \(24, 512\), the model has \(32, 512\)"
    ):
        medtrain.build_model("mirai", weights=paths, hidden_dim=32, num_heads=4)


def test_parts_that_do_not_make_up_a_mirai(files: Any, mirai: nn.Module, tmp_path: Path) -> None:
    encoder, transformer = files()
    with pytest.raises(CheckpointError, match=r"encoder\.p is the image encoder of Mirai, not the whole: name the fil"):
        medtrain.build_model("mirai", weights=encoder)
    with pytest.raises(CheckpointError, match=r"transformer\.p is the transformer of Mirai, not the whole"):
        medtrain.build_model("mirai", weights=transformer)
    with pytest.raises(CheckpointError, match=r"encoder\.p holds a part that another of the files holds too"):
        import_risk_weights([tmp_path / ".." / tmp_path.name / "encoder.p", encoder], "image_encoder")
    with foreign_names():
        odd = encoder_of(mirai.image_encoder)
        odd._model.add_module("attention", nn.Linear(3, 3))
        torch.save(odd, encoder)
    with pytest.raises(CheckpointError, match=r"encoder\.p holds 2 tensors that Mirai does not have:\n  - _model\.att"):
        import_risk_weights([encoder, transformer], "image_encoder")
    torch.save({"epoch": 3}, encoder)
    with pytest.raises(CheckpointError, match=r"encoder\.p holds no tensors"):
        import_risk_weights([encoder, transformer], "image_encoder")


# Reference checkpoints: keys and shapes of the published benchmark's networks, values by a formula.
NETWORKS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "mammo_reg_net": ("networks", "formula_mammoregnet", "", {}),
    "imgfeatalign": ("imgfeatalign", "formula_imgfeatalign", "mammo_reg_net.", {}),
    "lmv_net": ("networks", "formula_lmv_net", "longitudinal_feat_processor.mammo_reg_net.", {}),
    "mirai": ("mirai", "formula_mirai", "", {}),
    "vmra_mar": ("vmra_mar", "formula_vmra_mar", "", {}),
    "oa_breacr": ("oa_breacr", "formula_oa_breacr", "", {"img_size": [128, 96]}),
}


def keys_of(plugin: str) -> Keys:
    file, case, registration, _ = NETWORKS[plugin]

    def listed(name: str, of: str) -> Keys:
        cases = json.loads((GOLDEN / f"{name}.json").read_text())
        keys = cases[of]["inputs"]["state_dict_keys"]
        return {key: tuple(shape) for key, shape, _ in keys if key[0] != "<"}

    keys = listed(file, case)
    if registration:
        keys |= {registration + key: shape for key, shape in listed("networks", "formula_mammoregnet").items()}
    return keys


def state_of(keys: Keys) -> dict[str, torch.Tensor]:
    integers = ("num_batches_tracked", "relative_position_index")
    values = {}
    for number, (key, shape) in enumerate(sorted(keys.items())):
        if key.endswith(integers):
            values[key] = torch.full(shape, number, dtype=torch.int64)
        else:
            wave = torch.sin(0.7 * torch.arange(int(np.prod(shape)), dtype=torch.float32) + 0.3 * number)
            values[key] = wave.view(shape)
    return values


@pytest.mark.parametrize("plugin", NETWORKS)
def test_checkpoints_of_the_benchmark(plugin: str, tmp_path: Path) -> None:
    options = NETWORKS[plugin][3]
    state = state_of(keys_of(plugin))
    first = next(key for key, tensor in state.items() if tensor.is_floating_point())
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(state[first])}
    checkpoint = {
        "epoch": 4,
        "global_step": 120,
        "best_c_index": np.float64(0.71),
        "model": {f"module.{key}": tensor for key, tensor in state.items()},
        "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "scheduler": {"best": np.float64(0.7), "mode_worse": -np.inf},
        "warmup_scheduler": None,
    }
    torch.save(checkpoint, tmp_path / "best_model.pth")
    model = medtrain.build_model(plugin, weights=tmp_path / "best_model.pth", **options)
    found = model.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    note = import_risk_weights([tmp_path / "best_model.pth"]).notes[0]
    assert "checkpoint of the published benchmark: its numbers are those of a model with compat=reference" in note


def test_the_backbone_is_the_seventh(mirai: nn.Module, tmp_path: Path) -> None:
    cases = json.loads((GOLDEN / "networks.json").read_text())
    keys = {key: tuple(shape) for key, shape, _ in cases["formula_mirai_backbone"]["inputs"]["state_dict_keys"]}
    state = state_of(keys)
    torch.save({"model": {f"module.image_encoder.{key}": tensor for key, tensor in state.items()}}, tmp_path / "x.pth")
    found = load_backbone(tmp_path / "x.pth")
    assert found.keys() == keys.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = state_of(keys_of("mirai"))
    moved = state.pop("transformer.fc.bias")
    state["submodule.transformer.fc.bias"] = moved
    state["transformer.projection_layer.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError) as caught:
        medtrain.build_model("mirai", weights=tmp_path / "bare.pth")
    for line in (
        "Missing keys (1):\n  - transformer.fc.bias\n",
        "Unknown keys (1):\n  - submodule.transformer.fc.bias\n",
        "Other shapes (1):\n  - transformer.projection_layer.bias: (7,), the model has (512,)",
    ):
        assert line in str(caught.value)


def test_only_a_leading_module_is_dropped(tmp_path: Path) -> None:
    state = {f"sub{'module.'}{key}": tensor for key, tensor in state_of(keys_of("mammo_reg_net")).items()}
    torch.save(state, tmp_path / "bare.pth")
    with pytest.raises(CheckpointError, match=r"(?s)Missing keys \(282\).*Unknown keys \(282\).*submodule\.Decoder"):
        medtrain.build_model("mammo_reg_net", weights=tmp_path / "bare.pth")


def test_import_and_build_again_on_the_command_line(
    files: Any, mirai: nn.Module, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, transformer = files()
    monkeypatch.chdir(tmp_path)
    assert command("weights", "import", "mirai", encoder, transformer, "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["out"] == str(tmp_path / "encoder.safetensors") and told["tensors"] == len(mirai.state_dict())
    assert told["options"] == {**OFFICIAL, "risk_factors": False}
    with safe_open(told["out"], framework="pt") as file:
        noted = json.loads(file.metadata()["medtrain"])
    assert noted["plugin"] == "mirai" and noted["options"] == told["options"]
    assert [source["file"] for source in noted["source"]] == ["encoder.p", "transformer.p"]
    assert all(len(source["sha256"]) == 64 for source in noted["source"])
    loaded = medtrain.build_model("mirai", weights=told["out"])
    assert_same(loaded, mirai)
    assert loaded.input_norm == "mirai"
    # The imported file serves as the pretrained encoder of other models too.
    found = load_backbone(told["out"])
    assert all(torch.equal(found[key], tensor) for key, tensor in mirai.image_encoder.state_dict().items())


def command(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


HOSTILE = {
    "bare": bytes,
    "zip": in_zip,
    "old form": in_old_form,
}


@pytest.mark.parametrize("form", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("plugin", ["mirai", "mammo_reg_net", "oa_breacr"])
def test_hostile_files_on_the_command_line(
    form: Any, plugin: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("weights.p").write_bytes(form(b"cposix\nsystem\n(" + text("touch executed") + b"tR."))
    assert command("weights", "import", plugin, "weights.p") == 3
    said = capsys.readouterr()
    assert "Error: weights.p was not loaded: it asks for posix.system" in said.err
    assert "Traceback" not in said.err + said.out
    assert [path.name for path in tmp_path.iterdir()] == ["weights.p"]
