"""`medtrain export`: what the core does around a plugin's exporter, and what it writes without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from medtrain.weights import read_about
from medtrain_cli.main import main
from safetensors.torch import load_file, save_file

TOY = "toy_plugin"
EXPORTER = '''
"""Writes the sum of the weights and what it was given."""

import json

from medtrain import hookimpl
from medtrain.errors import ExportError


@hookimpl
def export(run, format, path, check):
    if format != "onnx":
        return None
    total = sum(float(p.detach().sum()) for p in run.model.parameters())
    groups = sorted(check.data().groups()) if check else None
    path.write_text(json.dumps([total, run.model.training, groups]))
    if check and check.max_drop == 0:
        raise ExportError("it is not as good")
    if check and check.max_drop == 7:
        raise RuntimeError("a mistake of the plugin")
    return {"groups": groups, "step": run.step, "notes": ["All is well."]}
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, command_line_in: Any) -> Path:
    """A folder with a plugin that exports and a run directory, `trial`, of two epochs."""
    folder: Path = tmp_path_factory.mktemp("exported")
    (folder / "more").mkdir()
    (folder / "more" / "exporter.py").write_text(EXPORTER)
    command = command_line_in(folder)
    command.paths.append(str(folder))
    plugins = ("--plugin", TOY, "--plugin", "more.exporter")
    command("run", *plugins, "--set", "computational.device=cpu", "--epochs", 2, "--out", "trial", "--quiet")
    return folder


@pytest.fixture
def export(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`export("--format", "pth", code=2)` exports the run in the test's own folder: (output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))

    def command(*arguments: Any, code: int = 0, source: Path = folder / "trial") -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["export", str(source), *map(str, arguments)])
        said = capsys.readouterr()
        assert int(ended.value.code or 0) == code, said
        assert "Traceback" not in said.out + said.err
        return said.out, said.err

    return command


def best(folder: Path) -> Path:
    return next((folder / "trial" / "split-0").glob("best-*"))


def test_a_plugin_writes_and_tells(export: Any, folder: Path, tmp_path: Path) -> None:
    name = best(folder).name
    said, _ = export()
    assert said.splitlines()[0].startswith(f"Wrote trial-{name}.onnx: onnx, ") and said.endswith("All is well.\n")
    total, training, groups = json.loads((tmp_path / f"trial-{name}.onnx").read_text())
    weights = load_file(best(folder) / "model.safetensors")
    assert total == pytest.approx(sum(float(w.sum()) for w in weights.values()), abs=1e-5)
    assert not training and groups == ["test", "train", "validation"]

    said, _ = export("--out", "x.onnx", "--json", "--no-check", "--checkpoint", "last")
    told = json.loads(said.splitlines()[-1])
    assert told["status"] == "completed" and told["out"] == "x.onnx" and told["format"] == "onnx"
    assert told["groups"] is None and told["source"] == "trial/last" and told["step"] > 0
    assert told["bytes"] == (tmp_path / "x.onnx").stat().st_size


@pytest.mark.parametrize(("max_drop", "reason"), [("0", "it is not as good"), ("7", "a mistake of the plugin")])
def test_what_is_refused_leaves_nothing(export: Any, tmp_path: Path, max_drop: str, reason: str) -> None:
    (tmp_path / "x.onnx").write_text("an earlier export")
    _, errors = export("--out", "x.onnx", "--max-drop", max_drop, code=1)
    assert reason in errors
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_text() == "an earlier export"


def test_formats_of_every_model(export: Any, folder: Path, tmp_path: Path) -> None:
    weights = load_file(best(folder) / "model.safetensors")
    export("--format", "safetensors", "--out", "x.safetensors")
    export("--format", "pth", "--out", "x.pth")
    plain = torch.load(tmp_path / "x.pth", weights_only=True)
    stored = load_file(tmp_path / "x.safetensors")
    assert plain.keys() == stored.keys() == weights.keys()
    assert all(torch.equal(plain[key], weights[key]) and torch.equal(stored[key], weights[key]) for key in weights)
    noted = read_about(tmp_path / "x.safetensors")
    assert noted is not None and noted["plugin"] == TOY and noted["source"][0]["sha256"]


def test_sources(export: Any, folder: Path, tmp_path: Path) -> None:
    """A split, a checkpoint inside and outside of its run, its weights, and a weights file that says what it is."""
    shutil.copytree(best(folder), tmp_path / "taken")
    export("--format", "safetensors", "--out", "w.safetensors")
    inside = best(folder)
    sources = (folder / "trial" / "split-0", inside, inside / "model.safetensors", tmp_path / "taken")
    for number, source in enumerate((*sources, tmp_path / "w.safetensors")):
        export("--format", "pth", "--out", f"{number}.pth", source=source)
    wanted = load_file(inside / "model.safetensors")
    for number in range(5):
        found = torch.load(tmp_path / f"{number}.pth", weights_only=True)
        assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    said, _ = export(source=tmp_path / "taken")
    assert "taken.onnx" in said


def test_mistakes(export: Any, folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[tuple[Any, ...], int, str]] = [
        (("--format", "onxn"), 2, "exports the format 'onxn' (did you mean 'onnx'?)"),
        (("--format", "onnx-int8"), 2, "exports the format 'onnx-int8' (hook export); pth and safetensors"),
        (("--out", "x.pth"), 2, "--out x.pth: the name of the file must end in .onnx"),
        (("--out", "no/x.onnx"), 2, "there is no folder no"),
        (("--checkpoint", "best"), 3, "there is no checkpoint 'best'"),
        (("--set", "toy_plugin.nonsense=1"), 2, "nonsense"),
    ]
    for arguments, code, reason in cases:
        _, errors = export(*arguments, code=code)
        assert reason in errors, errors
    _, errors = export(source=tmp_path / "gone", code=2)
    assert "there is no such run, checkpoint or file" in errors
    save_file(load_file(best(folder) / "model.safetensors"), tmp_path / "bare.safetensors")
    _, errors = export(source=tmp_path / "bare.safetensors", code=2)
    assert "does not say which model it is for; `medtrain weights import PLUGIN" in errors
    _, errors = export(
        "--out", "bare.safetensors", "--format", "safetensors", source=tmp_path / "bare.safetensors", code=2
    )
    assert "this is what is exported" in errors
    (tmp_path / "bare.safetensors").unlink()
    assert not list(tmp_path.iterdir())
