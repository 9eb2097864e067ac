"""Third-party packages from source to wheel to training to gone, in an environment layered on the present one."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "medtrain-plugin-x"
TOY = ("--plugin", "medtrain.testing:ToyTask")
KINDS = ("model", "loss", "scheduler", "callback")


@dataclass
class Layer:
    """A virtual environment that sees all of the present one's packages and can have its own."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, symlinks=True)
        below = sysconfig.get_path("purelib")
        own = sysconfig.get_path("purelib", "venv", vars={"base": str(self.folder)})
        # addsitedir and not the bare path: editable installs of the present environment count too.
        Path(own, "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")
        self.environment = os.environ | {"MEDTRAIN_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}

    def python(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / "python"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=cwd)

    def medtrain(self, *arguments: str, exit_code: int = 0) -> str:
        """Standard output of the real command line, or its standard error when it is meant to fail."""
        done = self.python("-m", "medtrain", *arguments, cwd=self.folder)
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stderr if exit_code else done.stdout

    def pip(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "--python", str(self.folder / "bin" / "python"), *arguments],
            capture_output=True,
            text=True,
            env=self.environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *sources: Path) -> None:
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
        self.pip("install", *offline, *map(str, sources))

    def plugins(self) -> dict[str, dict[str, str]]:
        return {row["name"]: row for row in json.loads(self.medtrain("plugins", "list", "--json"))}


@pytest.fixture
def layer(tmp_path: Path) -> Layer:
    return Layer(tmp_path / "layer")


@pytest.mark.acceptance
def test_a_package_comes_trains_and_goes(layer: Layer, tmp_path: Path) -> None:
    assert "x" not in layer.plugins()
    built = layer.python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(EXAMPLE))
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    layer.install(wheel)

    row = layer.plugins()["x"]
    assert (row["distribution"], row["version"], row["kind"]) == ("medtrain-plugin-x", "0.1.0", "scheduler")
    about = json.loads(layer.medtrain("plugins", "info", "x", "--json"))
    assert about["hooks"] == ["build_scheduler", "on_epoch_end", "plugin_options"]
    assert {option["name"]: option["default"] for option in about["options"]}["restart_every"] == 10
    explained = json.loads(layer.medtrain("plugins", "explain", TOY[1], "x", "--json"))
    assert {row["hook"]: row["plugins"] for row in explained}["build_scheduler"] == ["x"]

    run = str(tmp_path / "run")
    settings = ("--set", "x.restart_every=2", "--set", "optimization.learning_rate=0.01", "--epochs", "3")
    result = layer.medtrain("run", *TOY, "--plugin", "x", *settings, "--out", run, "--json", "--quiet")
    assert json.loads(result.splitlines()[-1])["status"] == "completed"
    history = [json.loads(line) for line in Path(run, "split-0", "history.jsonl").read_text().splitlines()]
    steps = history[0]["step"]  # periods of two and four epochs; a record tells the rate of its epoch's last step
    places = [(steps - 1) / (2 * steps), (2 * steps - 1) / (2 * steps), (steps - 1) / (4 * steps)]
    expected = [0.005 * (1 + math.cos(math.pi * place)) for place in places]
    assert [record["learning_rate"] for record in history] == pytest.approx(expected)
    gaps = [record["validation/loss"] - record["train/loss"] for record in history]
    assert [record["generalisation_gap"] for record in history] == pytest.approx(gaps)
    assert "FAIL" not in layer.medtrain("plugins", "check", "x")

    layer.pip("uninstall", "--yes", "medtrain-plugin-x")
    assert "x" not in layer.plugins()
    for command in (("run", *TOY, "--plugin", "x"), ("resume", run)):
        assert "there is no plugin 'x'" in layer.medtrain(*command, exit_code=2)


@pytest.mark.acceptance
def test_scaffolded_packages_pass_their_own_tests(layer: Layer, tmp_path: Path) -> None:
    folders = [tmp_path / f"my-{kind}" for kind in KINDS]
    for kind, folder in zip(KINDS, folders, strict=True):
        layer.medtrain("plugins", "new", f"my_{kind}", "--kind", kind, "--out", str(folder))
    layer.install(EXAMPLE, *folders)
    rows = layer.plugins()
    assert [rows[f"my_{kind}"]["kind"] for kind in KINDS] == list(KINDS)

    # One process for the four, as importing torch takes longer than checking.
    script = "import sys; from medtrain_cli.main import cli\nfor name in sys.argv[1:]:\n"
    script += "    assert cli.main(['plugins', 'check', name], standalone_mode=False) == 0, name"
    checked = layer.python("-c", script, *(f"my_{kind}" for kind in KINDS))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    suites = [str(folder / "tests") for folder in (*folders, EXAMPLE)]
    tested = layer.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *suites)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "13 passed" in tested.stdout
