"""`medtrain runs compare` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.acceptance

TOY = ("--plugin", "toy_plugin", "--set", "computational.device=cpu", "--set", "toy_plugin.test=40", "--quiet")


@pytest.fixture(scope="module")
def medtrain(tmp_path_factory: pytest.TempPathFactory, command_line_in: Any) -> Any:
    """A command line in a folder with the runs `runs/a` and `runs/b`."""
    command_line = command_line_in(tmp_path_factory.mktemp("compared"))
    for name, epochs in (("a", 6), ("b", 1)):
        command_line(
            "run", *TOY, "--epochs", epochs, "--set", "optimization.learning_rate=0.05", "--out", f"runs/{name}"
        )
    return command_line


def test_two_runs_side_by_side(medtrain: Any) -> None:
    result = medtrain("runs", "compare", "runs/a", "runs/b", "--replicates", 100)
    text = result.stdout
    assert "Evaluating runs/a/split-0 on group test" in text
    assert "By sample: 40 samples, 40 participants." in text
    assert "Differences (first - second)" in text and "p (bootstrap)" in text and "fit" in text
    (out,) = medtrain.folder.glob("compare-*")
    assert f"{out.name}/report.html" in text
    assert {path.name for path in out.iterdir()} == {"comparison.json", "report.html", "plots"}
    told = json.loads((out / "comparison.json").read_text())
    assert [run["maps"] for run in told["runs"]] == ["runs/a", "runs/b"]


def test_json_is_one_object_and_goes_to_the_folder_asked_for(medtrain: Any) -> None:
    arguments = ("runs", "compare", "runs/a", "runs/b", "--replicates", 20, "--seed", 4, "--group", "validation")
    result = medtrain(*arguments, "--out", "here/it/is", "--json")
    (line,) = result.stdout.splitlines()
    told = json.loads(line)
    assert (told["status"], told["out"], told["group"], told["seed"]) == ("completed", "here/it/is", "validation", 4)
    assert told["comparisons"][0]["units"]["sample"]["scores"]["fit"]["a"]["valid"] == 20
    written = json.loads((medtrain.folder / "here/it/is/comparison.json").read_text())
    assert written == {key: value for key, value in told.items() if key not in ("status", "out")}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("runs/a",), 2, "name at least two run directories"),
        (("runs/a", "runs/../runs/a"), 2, "is named twice"),
        (("runs/a", "runs"), 2, "runs: not a run directory"),
        (("runs/a", "runs/b", "--split", "3"), 2, "there is no split 3"),
        (("runs/a", "runs/b", "--group", "tset"), 3, "there is no group 'tset'"),
        (("runs/a", "runs/b", "--out", "file/x", "--replicates", "1"), 2, "file/x: cannot be written"),
    ],
)
def test_mistakes_are_one_clear_message(medtrain: Any, arguments: tuple[str, ...], code: int, said: str) -> None:
    Path(medtrain.folder / "file").write_text("")
    errors = medtrain("runs", "compare", *arguments, code=code).stderr
    assert said in errors and "Traceback" not in errors


def test_help_lists_it(medtrain: Any) -> None:
    assert "compare" in medtrain("runs", "--help").stdout
