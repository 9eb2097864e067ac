"""`medtrain weights`: what is written, what is said, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import medtrain as python_medtrain
import pytest
import torch
from medtrain_cli.main import main
from safetensors.torch import load_file, save_file

TOY = "toy_plugin"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, command_line_in: Any) -> Path:
    """A run directory of two epochs."""
    folder = tmp_path_factory.mktemp("finished")
    arguments = ("--plugin", TOY, "--set", "computational.device=cpu", "--set", f"{TOY}.dropout=0.25")
    command_line_in(folder)("run", *arguments, "--epochs", 2, "--out", "trial", "--quiet")
    return folder / "trial"


@pytest.fixture
def weights(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`weights("show", file, code=2)` runs `medtrain weights show` in the test's own folder: (output, errors)."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: Any, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["weights", *map(str, arguments)])
        said = capsys.readouterr()
        assert int(ended.value.code or 0) == code, said
        assert "Traceback" not in said.out + said.err
        return said.out, said.err

    return command


def state() -> dict[str, torch.Tensor]:
    return dict(python_medtrain.build_model(TOY).state_dict())


def test_import(weights: Any, tmp_path: Path) -> None:
    torch.save({"model": {f"module.{k}": v for k, v in state().items()}}, tmp_path / "net.pth")
    said, _ = weights("import", TOY, "net.pth", "--set", f"{TOY}.dropout=0.5")
    assert (
        said
        == "Wrote net.safetensors: 4 tensors, 67 values.\nBuilt with toy_plugin.dropout=0.5; the file records it.\n"
    )
    assert load_file(tmp_path / "net.safetensors").keys() == state().keys()
    assert python_medtrain.build_model(TOY, weights=tmp_path / "net.safetensors")[2].p == 0.5
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["net.pth", "net.safetensors"]

    said, _ = weights("import", TOY, "net.safetensors", "--out", "again.safetensors", "--json")
    told = json.loads(said)
    assert told["options"] == {"dropout": 0.5} and told["values"] == 67 and told["status"] == "completed"


def test_nothing_is_written_over(weights: Any, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pth")
    save_file(state(), tmp_path / "net.safetensors")
    before = (tmp_path / "net.safetensors").read_bytes()
    _, errors = weights("import", TOY, "net.pth", code=2)
    assert "net.safetensors: exists already; name another file with --out" in errors
    _, errors = weights("import", TOY, "net.safetensors", "--out", "net.safetensors", code=2)
    assert "this is the file that is read; name another" in errors
    assert (tmp_path / "net.safetensors").read_bytes() == before
    weights("import", TOY, "net.pth", "--out", "net.safetensors")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("net.pth", "--out", "net.pth"), 2, "must end in .safetensors"),
        (("net.pth", "--out", "away/net.safetensors"), 2, "there is no folder away"),
        (("lost.pth",), 2, "lost.pth: there is no such weights file"),
        (
            ("net.pth", "--set", "toy_plugin.droput=1"),
            2,
            "--set toy_plugin.droput: plugins.toy_plugin.droput: unknown key",
        ),
        (("net.pth", "--set", "droput"), 2, "write key=value"),
        (("net.pth", "net.pth"), 2, "toy_plugin reads weights from one file at a time, not from 2"),
        (("other.pth",), 3, "Unknown keys (1):\n  - extra"),
        (("list.pth",), 2, "not a state dict (tensors by name) but list"),
        (("text.pth",), 2, "not a plain state dict, and nothing else is loaded"),
        ((".",), 2, "neither a run directory nor inside one"),
        ((), 2, "Missing argument"),
    ],
)
def test_import_says_what_is_wrong(weights: Any, tmp_path: Path, arguments: Any, code: int, said: str) -> None:
    torch.save(state(), tmp_path / "net.pth")
    torch.save({**state(), "extra": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert said in weights("import", TOY, *arguments, code=code)[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_import_says_which_plugins_there_are(weights: Any, tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pth")
    assert (
        "there is no plugin 'toy_plugn' (did you mean 'toy_plugin'?)"
        in weights("import", "toy_plugn", "net.pth", code=2)[1]
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_import_beside_a_file_nobody_may_write_to(weights: Any, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    torch.save(state(), tmp_path / "closed" / "net.pth")
    (tmp_path / "closed").chmod(0o555)
    assert weights("import", TOY, "closed/net.pth")[0].startswith("Wrote net.safetensors:")


def test_a_hostile_file_runs_nothing(weights: Any, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"cposix\nsystem\n(Vtouch executed\ntR.")
    for arguments in (("import", TOY, "weights.pth"), ("show", "weights.pth")):
        _, errors = weights(*arguments, code=2)
        assert "weights.pth: not a plain state dict, and nothing else is loaded: it asks for posix.system\n" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


def test_export(weights: Any, finished: Path, tmp_path: Path) -> None:
    said, _ = weights("export", finished)
    assert said == "Wrote trial-best-fit.safetensors: 4 tensors, 67 values.\n"
    best = load_file(finished / "split-0" / "best-fit" / "model.safetensors")
    found = load_file(tmp_path / "trial-best-fit.safetensors")
    assert all(torch.equal(found[key], tensor) for key, tensor in best.items())
    assert python_medtrain.build_model(TOY, weights="trial-best-fit.safetensors")[2].p == 0.25

    told = json.loads(weights("export", finished / "split-0", "--checkpoint", "last", "--format", "pth", "--json")[0])
    assert told["out"] == "trial-last.pth" and told["options"]["dropout"] == 0.25
    last = load_file(finished / "split-0" / "last" / "model.safetensors")
    plain = torch.load("trial-last.pth", weights_only=True)
    assert type(plain) is dict and all(torch.equal(plain[key], tensor) for key, tensor in last.items())
    assert "no checkpoint 'lost'; there are: " in weights("export", finished, "--checkpoint", "lost", code=3)[1]
    assert "must end in .pth" in weights("export", finished, "--format", "pth", "--out", "x.pt", code=2)[1]


def test_export_says_that_pth_is_pickled(weights: Any) -> None:
    assert "pth: a plain state dict, pickled by" in " ".join(weights("export", "--help")[0].split())


def test_import_of_a_run(weights: Any, finished: Path, tmp_path: Path) -> None:
    told = json.loads(weights("import", TOY, finished, "--out", "x.safetensors", "--json")[0])
    assert told["options"]["dropout"] == 0.25
    noted = json.loads(weights("show", "x.safetensors", "--json")[0])["medtrain"]
    assert noted["source"][0]["file"] == "trial/split-0/best-fit/model.safetensors"


def test_show(weights: Any, finished: Path, tmp_path: Path) -> None:
    weights("export", finished, "--out", "x.safetensors")
    for file in (finished, "x.safetensors"):
        said, _ = weights("show", file)
        lines = [line.split() for line in said.splitlines()]
        assert lines[0] == ["tensor", "shape", "dtype"]
        assert ["0.weight", "[8,", "4]", "float32"] in lines
        assert "4 tensors, 67 values, 0.0 MB" in said
        assert any(line[:2] == ["plugin", TOY] for line in lines)
        assert '"dropout": 0.25' in said and "sha256" in said
    torch.save(state(), tmp_path / "plain.pth")
    told = json.loads(weights("show", "plain.pth", "--json")[0])
    assert told["medtrain"] is None and told["values"] == 67 and told["bytes"] == 268
    assert {"key": "3.bias", "shape": [3], "dtype": "float32"} in told["tensors"]
    assert "there is no such file or run" in weights("show", "lost", code=2)[1]
