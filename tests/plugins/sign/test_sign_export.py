"""Exports of trained sign models, run by ONNX Runtime; and the published checkpoint layout, there and back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from medtrain import Data, Trainer, build_model
from medtrain.config import Layers
from medtrain.errors import DataError, ExportError
from medtrain.plugins import Plugins
from medtrain.protocols.weights import Check
from medtrain_plugins.results.export import export_model
from medtrain_plugins.results.weights_files import note, write
from medtrain_plugins.sign.data.synth import synthesize
from medtrain_plugins.sign.model import export
from medtrain_plugins.sign.model.model import SignTransformer
from safetensors.torch import load_file

SIGNS = [3, 5, 6, 9]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run on named signs; `data` lies beside it."""
    folder = tmp_path_factory.mktemp("signs")
    synthesize(folder / "data", SIGNS, 9, seed=3)
    words = {"AR_WORDS": [f"كلمة {n}" for n in range(502)], "EN_WORDS": [f"word {n}" for n in range(502)]}
    (folder / "data" / "KARSL-502_Labels.json").write_text(json.dumps(words), encoding="utf-8")
    layers = Layers()
    layers.add({"run": {"plugins": ["karsl"]}, "data": {"table": str(folder / "data"), "batch_size": 18}}, "test")
    layers.add({"computational": {"device": "cpu"}, "validation": {"monitor": "top1"}}, "test")
    layers.add({"optimization": {"num_epochs": 12, "learning_rate": 2e-3}}, "test")
    options = {"signs": "3,5-6,9", "model_size": "t_2_1", "frames": 12, "dropout": 0.1}
    layers.add({"plugins": {"karsl": options}}, "test")
    Trainer(folder / "run", config=layers.build(Plugins.of(["karsl"]).options())).train()
    return folder / "run"


@pytest.fixture(scope="module")
def float32(run: Path) -> tuple[Path, dict[str, Any]]:
    """The run as ONNX, and what was told about it."""
    out = run.parent / "float32.onnx"
    return out, export_model(run, "onnx", out)


def runs(path: Path, keypoints: Any) -> Any:
    return onnxruntime.InferenceSession(str(path)).run(["output"], {"input": keypoints})[0]


def noted(path: Path) -> Any:
    return json.loads({p.key: p.value for p in onnx.load(path).metadata_props}["medtrain"])


@pytest.mark.parametrize("batch", [1, 2, 7, 64])
def test_onnx_gives_the_logits_of_the_model(run: Path, float32: tuple[Path, Any], batch: int) -> None:
    model = build_model("karsl", weights=run).eval()
    keypoints = torch.randn(batch, 12, 736, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        wanted = model({"keypoints": keypoints})["logits"].numpy()
    assert np.abs(runs(float32[0], keypoints.numpy()) - wanted).max() <= 1e-4 and np.ptp(wanted) > 0.1


def test_what_is_told_about_an_export(run: Path, float32: tuple[Path, Any]) -> None:
    path, told = float32
    assert told["opset"] == 18 and told["input"] == ["input", "batch_size", 12, 736]
    assert told["output"] == ["output", "batch_size", 4] and told["checked"]
    assert told["largest_difference"] <= 1e-4 and len(told["compared_on"]) == 2
    about = noted(path)
    assert [sign["number"] for sign in about["signs"]] == SIGNS and about["signs"][1]["class"] == 1
    assert about["signs"][3]["arabic"] == "كلمة 8" and about["signs"][3]["english"] == "word 8"
    assert about["normalisation"] == "adjusted" and about["sampling"]["frames"] == 12
    assert about["model_size"] == "t_2_1" and about["checkpoint"]["name"] == "best-top1"
    # One file, and nothing in it of the machine it was made on.
    assert [p.name for p in run.parent.iterdir() if "onnx" in p.name] == [path.name]
    content = path.read_bytes()
    assert str(Path(export.__file__).parent).encode() not in content and str(run).encode() not in content
    assert [o.version for o in onnx.load(path).opset_import] == [18]


def test_a_model_that_differs_is_refused(run: Path, float32: tuple[Path, Any]) -> None:
    other = build_model("karsl", weights=run).eval()
    assert isinstance(other, SignTransformer)
    check = Check(Data)
    told = export.check_equality(other, float32[0], check)
    assert told["compared_on"] == ["drawn values"] and "neither a validation nor a test group" in told["notes"][1]
    with torch.no_grad():
        other.fc.bias[2] += 3e-4
    with pytest.raises(ExportError, match=r"a logit by 0\.0003 with 1 of drawn values, more than 0\.0001"):
        export.check_equality(other, float32[0], check)
    with torch.no_grad():
        other.fc.bias[2] = torch.nan
    with pytest.raises(ExportError, match="a logit by nan"):
        export.check_equality(other, float32[0], check)


def test_int8(run: Path, float32: tuple[Path, Any]) -> None:
    out = run.parent / "small.onnx"
    told = export_model(run, "onnx-int8", out)
    assert told["bytes"] == told["bytes_int8"] == out.stat().st_size < told["bytes_float32"]
    operators = [node.op_type for node in onnx.load(out).graph.node]
    # Four groups, four layers of attention (two each), two of the block, two of the pooling, the classifier.
    assert operators.count("MatMulInteger") == 4 + 4 + 2 + 2 + 1
    assert noted(out)["precision"].startswith("int8") and noted(out)["signs"] == noted(float32[0])["signs"]

    trainer = Trainer.from_maps(run)
    evaluation = trainer.evaluate("validation")
    accuracy = told["accuracy"]
    assert accuracy["top1_float32"] == evaluation.metrics["top1"] > 0.5
    assert accuracy["clips"] == len(evaluation.rows["label"]) and accuracy["group"] == "validation"
    assert accuracy["top1_int8"] >= accuracy["top1_float32"] - 0.01

    # Close to the model, but not the model.
    assert trainer.run is not None and trainer.run.data is not None
    model = trainer.run.model
    assert isinstance(model, SignTransformer)
    keypoints, _ = next(export.sampled(trainer.run.data.validation, model, 20))
    exact, rounded = runs(float32[0], keypoints), runs(out, keypoints)
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_int8_that_loses_accuracy_is_refused(run: Path, float32: tuple[Path, Any], tmp_path: Path) -> None:
    """The smaller file is spoilt: its classifier sees one sign everywhere."""
    trainer = Trainer.from_maps(run)
    trainer.evaluate("validation")
    assert trainer.run is not None and trainer.run.data is not None
    model, data = trainer.run.model, trainer.run.data
    assert isinstance(model, SignTransformer)
    spoilt = onnx.load(float32[0])
    (bias,) = [tensor for tensor in spoilt.graph.initializer if tensor.name.endswith("fc.bias")]
    bias.raw_data = np.array([0, 1e3, 0, 0], np.float32).tobytes()
    onnx.save(spoilt, tmp_path / "spoilt.onnx")
    export.quantize(tmp_path / "spoilt.onnx", tmp_path / "int8.onnx", {})
    clips = ("validation", data.validation)
    with pytest.raises(ExportError, match=r"8-bit weights lose \d+\.\d\d percentage points .* nothing was written"):
        export.check_accuracy(model, float32[0], tmp_path / "int8.onnx", clips, max_drop=1)
    told = export.check_accuracy(model, float32[0], tmp_path / "int8.onnx", clips, max_drop=100)
    assert told["accuracy"]["top1_int8"] < told["accuracy"]["top1_float32"]


@pytest.mark.acceptance
def test_exports_of_a_run_whose_data_have_moved(run: Path, tmp_path: Path, medtrain: Any) -> None:
    shutil.copytree(run, tmp_path / "run")
    moved = (run.parent / "data").rename(run.parent / "moved")
    try:
        with pytest.raises(DataError, match=r"--set data\.table=FOLDER, or give --no-check"):
            export_model(tmp_path / "run", "onnx-int8", tmp_path / "x.onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        settings = ("--format", "onnx-int8", "--set", f"data.table={moved}", "--json")
        told = json.loads(medtrain("export", "run", *settings).stdout.splitlines()[-1])
        assert told["accuracy"]["clips"] > 0 and told["out"] == "run-best-top1-int8.onnx"
    finally:
        moved.rename(run.parent / "data")


def test_the_published_layout_there_and_back(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_Nov21_02-59-46-signs_4_t_2_1"
    folder.mkdir()
    told = export_model(run, "pth", folder / "12.pth")
    assert any("signs_4_t_2_1" in note for note in told["notes"])
    assert any("signs 3,5-6,9 in ascending order" in note for note in told["notes"])
    stored = torch.load(folder / "12.pth", weights_only=True)
    assert list(stored) == ["model", "optimizer", "scheduler"]
    weights = load_file(run / "split-0" / "best-top1" / "model.safetensors")
    assert stored["model"].keys() == weights.keys()

    again = build_model("karsl", weights=folder / "12.pth", frames=12)
    found = again.state_dict()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
    # A file that `medtrain weights import` makes of it can be exported like a run.
    options = {"signs": "1-4", "model_size": "t_2_1", "frames": 12}
    write(tmp_path / "w.safetensors", found, note("karsl", options, [folder / "12.pth"]))
    told = export_model(tmp_path / "w.safetensors", "onnx-int8", tmp_path / "w.onnx", check=False)
    assert not told["checked"] and "was not compared" in told["notes"][0]
    assert noted(tmp_path / "w.onnx")["signs"][3]["number"] == 4
