"""`medtrain plugins new` writes what it should and refuses what it must; `medtrain plugins check` fails in words."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hatchling.builders.wheel import WheelBuilder
from medtrain.errors import UsageError
from medtrain_cli.main import cli
from medtrain_cli.scaffold import KINDS, TEMPLATES, render

ROOT = Path(__file__).parents[2]


def new(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plugins", "new", *arguments])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_names_itself_consistently(here: Path, kind: str) -> None:
    result = new("gamma_ray", "--kind", kind)
    assert result.exit_code == 0, result.output
    folder = here / "medtrain-plugin-gamma-ray"
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["name"] == "medtrain-plugin-gamma-ray"
    assert project["dependencies"] == ["medtrain"]
    assert project["entry-points"]["medtrain"] == {"gamma_ray": "medtrain_plugin_gamma_ray"}
    assert (folder / "src" / "medtrain_plugin_gamma_ray" / "__init__.py").is_file()
    assert (folder / "tests" / "test_gamma_ray.py").is_file()
    texts = [path.read_text() for path in folder.rglob("*") if path.is_file()]
    assert not [text for text in texts if any(mark in text for mark in ("{{", "{%", "PACKAGE"))]


@pytest.mark.parametrize("kind", KINDS)
def test_generated_code_is_clean(tmp_path: Path, kind: str) -> None:
    for path, text in render("gamma_ray", kind, "medtrain-plugin-gamma-ray").items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    ruff = [sys.executable, "-m", "ruff"]
    style = ["--no-cache", "--isolated", "--line-length", "120", str(tmp_path)]
    for command in (["check", "--select", "E,F,W,I,B,UP,RUF"], ["format", "--check"]):
        done = subprocess.run([*ruff, *command, *style], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_says_what_to_type_next(here: Path) -> None:
    lines = new("gamma_ray", "--kind", "loss", "--out", "my plugins/first").output.splitlines()
    assert lines[-5].strip() == "cd 'my plugins/first'"
    assert [line.split()[0] for line in lines[-4:]] == ["python", "medtrain", "medtrain", "pytest"]
    assert (here / "my plugins" / "first" / "pyproject.toml").is_file()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Gamma-Ray", "use 'gamma_ray'"),
        ("medtrain-plugin-gamma", "use 'gamma'"),
        ("2d", "lower-case letters"),
        ("gamma__ray", "use 'gamma_ray'"),
        ("class", "cannot be a plugin's name"),
        ("../gamma", "use 'gamma'"),
        ("scheduler", "section of the configuration"),
        ("lmv_net", "already (medtrain)"),
        ("lmvnet", "already (medtrain)"),
    ],
)
def test_refuses_names_that_cannot_be(here: Path, name: str, message: str) -> None:
    result = new(name, "--kind", "loss")
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)
    assert list(here.iterdir()) == []


def test_a_name_close_to_an_installed_one_gets_a_note(here: Path) -> None:
    assert "there is an installed plugin 'lmv_net'" in new("lmv_net_2", "--kind", "loss").output
    assert "Note" not in new("gamma_ray", "--kind", "loss").output


def test_overwrites_nothing(here: Path) -> None:
    (here / "medtrain-plugin-gamma").mkdir()
    assert new("gamma", "--kind", "loss").exit_code == 0  # an empty folder will do
    mine = here / "medtrain-plugin-gamma" / "README.md"
    mine.write_text("mine")
    result = new("gamma", "--kind", "model")
    assert isinstance(result.exception, UsageError)
    assert "nothing is overwritten" in str(result.exception)
    assert mine.read_text() == "mine"
    result = new("gamma", "--kind", "model", "--out", str(mine / "below"))
    assert isinstance(result.exception, UsageError)
    assert "cannot be written" in str(result.exception)


def test_the_templates_are_in_the_wheel() -> None:
    shipped = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    templates = {f"medtrain_cli/{path.relative_to(TEMPLATES.parent)}" for path in TEMPLATES.rglob("*.j2")}
    assert len(templates) == 2 + 3 + 3 + 3 + 2
    assert templates <= shipped


def test_check_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "plugin_without_words.py").write_text(
        "from medtrain import hookimpl\nclass Mute:\n    @hookimpl\n    def on_epoch_end(self, run): pass\n"
    )
    runner = CliRunner()
    result = runner.invoke(cli, ["plugins", "check", "plugin_without_words:Mute"], standalone_mode=False)
    assert result.return_value == 1
    assert "FAIL  a docstring says what it is: there is none" in result.output
