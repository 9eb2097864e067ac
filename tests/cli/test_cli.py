"""The command line as a user meets it: real subprocesses, their words and their exit codes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from medtrain.rundir.directory import Maps

TOY = ("--plugin", "toy_plugin", "--set", "computational.device=cpu")
LIGHT = ("--plugin", "light_plugin")

LISTS_MODULES = """
import sys
from medtrain_cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
finally:
    print("\\n" + " ".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, command_line_in: Any) -> Path:
    """A run of two epochs, and what the command said."""
    folder = tmp_path_factory.mktemp("finished")
    said = command_line_in(folder)("run", *TOY, "--epochs", 2, "--seed", 5, "--name", "trial", "--json")
    (folder / "said.txt").write_text(said.stdout)
    (folder / "progress.txt").write_text(said.stderr)
    return folder


@pytest.mark.parametrize("arguments", [("--help",), ("plugins", "list"), ("--version",), ("run", "--help")])
def test_looking_around_imports_nothing_heavy(medtrain: Any, arguments: tuple[str, ...]) -> None:
    process = medtrain.start(*arguments, python=("-c", LISTS_MODULES))
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    modules = set(output.splitlines()[-1].split())
    assert "pluggy" in modules or "medtrain" in modules
    assert not modules & {"torch", "numpy", "pandas", "pydantic", "rich", "accelerate", "matplotlib"}


def test_help_lists_every_command(medtrain: Any) -> None:
    text = medtrain("--help").stdout
    for word in ("run", "resume", "eval", "predict", "plugins", "config", "runs", "doctor", "data"):
        assert f"\n  {word} " in text
    assert "synth" in medtrain("data", "--help").stdout
    assert "--accumulate" not in medtrain("run", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("rnu",), "there is no command 'rnu' (did you mean 'run'?)"),
        (("plugins", "lits"), "there is no command 'lits' (did you mean 'list'?)"),
        (("run", "--epoch", "3"), "--epochs"),
        (("run",), "name at least one plugin with --plugin"),
        (("run", "--plugin", "toy_plugn"), "there is no plugin 'toy_plugn' (did you mean 'toy_plugin'?)"),
        (("run", *LIGHT, "--epochs", "0"), "--epochs"),
        (("run", *LIGHT, "--set", "data.batchsize=4"), "unknown key (did you mean 'batch_size'?)"),
        (("run", *LIGHT, "--set", "data.batch_size"), "write key=value"),
        (("run", *LIGHT, "--set", "light_plugin.dropuot=1"), "plugins.light_plugin.dropuot: unknown key"),
        (("run", *LIGHT, "--config", "none.toml"), "none.toml: there is no such configuration file"),
        (("run", *LIGHT, "--preset", "paper"), "no chosen plugin has it"),
        (("resume", "nowhere"), "nowhere: not a run directory"),
        (("runs", "show", "nowhere"), "nowhere: not a run directory"),
        (("runs", "list", "nowhere"), "nowhere: there is no such folder"),
        (("eval", "nowhere"), "neither a run directory nor inside one"),
    ],
)
def test_mistakes_are_one_clear_message(medtrain: Any, arguments: tuple[str, ...], said: str) -> None:
    errors = medtrain(*arguments, code=2).stderr
    assert said in errors
    assert "Traceback" not in errors
    assert list(medtrain.folder.iterdir()) == []


def test_tracebacks_are_for_those_who_ask(medtrain: Any) -> None:
    plain = medtrain("run", "--plugin", "nothing_of_the_kind", code=2).stderr
    assert plain.startswith("Error: there is no plugin") and "Traceback" not in plain
    process = medtrain.start("run", "--plugin", "nothing_of_the_kind", "--debug")
    assert "Traceback" in process.communicate(timeout=60)[1]
    assert process.returncode == 1


def test_exit_codes_of_bad_data_and_divergence(medtrain: Any) -> None:
    said = medtrain("run", *TOY, "--set", "toy_plugin.test=0", "--out", "a", "--json", code=3)
    assert json.loads(said.stdout.splitlines()[-1]) == {
        "status": "failed",
        "error": "Error: group 'test' is empty: no sample is left in it",
        "exit_code": 3,
    }
    assert not (medtrain.folder / "a").exists()
    said = medtrain("run", *TOY, "--set", "toy_plugin.nan_from=1", "--out", "b", "--json", code=4)
    last = json.loads(said.stdout.splitlines()[-1])
    assert (last["status"], last["exit_code"]) == ("diverged", 4)
    assert "lower optimization.learning_rate" in said.stderr
    assert "Traceback" not in said.stderr


def test_json_is_the_last_line(finished: Path) -> None:
    last = json.loads((finished / "said.txt").read_text().splitlines()[-1])
    assert last["status"] == "completed"
    assert last["best_metric"]["name"] == "fit"
    assert last["epochs"] == 2 and last["seconds"] > 0
    assert (finished / last["maps"]).is_dir()
    assert last["maps"].startswith("runs/") and last["maps"].endswith("-toy_plugin-trial")
    progress = (finished / "progress.txt").read_text()
    assert "epoch 1/2" in progress and "val fit" in progress


def run_of(folder: Path) -> str:
    return json.loads((folder / "said.txt").read_text().splitlines()[-1])["maps"]


def test_the_command_line_is_recorded(finished: Path, command_line_in: Any) -> None:
    run = finished / run_of(finished)
    text = (run / "config.toml").read_text()
    assert "num_epochs = 2" in text and "seed = 5" in text and 'name = "trial"' in text
    shown = command_line_in(finished)("config", "check", "--config", run / "config.toml").stdout
    assert shown == "ok: toy_plugin\n"


def test_runs_list_and_show(finished: Path, command_line_in: Any) -> None:
    medtrain, run = command_line_in(finished), run_of(finished)
    (row,) = json.loads(medtrain("runs", "list", "--json").stdout)
    assert (row["maps"], row["status"], row["epoch"], row["num_epochs"]) == (run, "completed", 2, 2)
    assert row["plugins"] == ["toy_plugin"] and row["best"]["name"] == "fit"
    assert "completed" in medtrain("runs", "list").stdout
    shown = json.loads(medtrain("runs", "show", run, "--json").stdout)
    assert [record["epoch"] for record in shown["splits"][0]["history"]] == [0, 1]
    assert set(shown["splits"][0]["checkpoints"]) == {"last", "best-fit"}
    text = medtrain("runs", "show", run).stdout
    assert "samples: train 23, validation 9, test 5" in text and "best-fit" in text


def test_eval_and_predict(finished: Path, command_line_in: Any) -> None:
    medtrain, run = command_line_in(finished), run_of(finished)
    text = medtrain("eval", run, "--group", "validation", "--out", "here").stdout
    assert "Group validation, 9 samples" in text and "here/report.html" in text
    assert (finished / "here" / "predictions.csv").is_file()
    said = json.loads(medtrain("eval", f"{run}/split-0/last", "--json").stdout.splitlines()[-1])
    assert said["group"] == "test" and "fit" in said["metrics"]
    assert (finished / run / "split-0" / "evaluation-test" / "metrics.json").is_file()
    (finished / "vectors.txt").write_text("1,2,3,4\n")
    assert medtrain("predict", run, "vectors.txt").stdout.startswith("a,b,c\n")


@pytest.mark.acceptance
def test_resume_with_more_epochs(finished: Path, command_line_in: Any) -> None:
    medtrain, run = command_line_in(finished), run_of(finished)
    text = medtrain("resume", run, "--set", "optimization.num_epochs=3").stdout
    assert "epoch 3/3" in text and f"Run directory  {run}" in text


@pytest.mark.acceptance
def test_plain_output_tells_the_next_commands(medtrain: Any) -> None:
    text = medtrain("run", *TOY, "--epochs", 1, "--out", "mine").stdout
    assert "epoch 1/1  lr 0.001  train loss" in text
    assert "Best fit" in text
    assert "medtrain eval mine --group test" in text
    again = medtrain("run", *TOY, "--epochs", 1, "--out", "mine", code=2).stderr
    assert again.startswith("Error: mine/split-0: the folder already holds a run that is complete")


def test_a_dry_run_writes_nothing(medtrain: Any) -> None:
    text = medtrain("run", *TOY, "--dry-run").stdout
    assert "parameters             67" in text
    assert list(medtrain.folder.iterdir()) == []


def test_config_show_is_what_a_run_would_have(medtrain: Any) -> None:
    (medtrain.folder / "my.toml").write_text("[data]\nbatch_size = 3\n[plugins.light_plugin]\ndropout = 0.25\n")
    text = medtrain("config", "show", *LIGHT, "-c", "my.toml", "--set", "data.batch_size=5", "--epochs", 7).stdout
    assert "batch_size = 5" in text and "dropout = 0.25" in text and "num_epochs = 7" in text
    (medtrain.folder / "shown.toml").write_text(text)
    assert medtrain("config", "show", "-c", "shown.toml").stdout == text
    (medtrain.folder / "bad.toml").write_text("[data]\n\nbatch_size = 'x'\n")
    errors = medtrain("config", "check", *LIGHT, "-c", "bad.toml", code=2).stderr
    assert "bad.toml:3: data.batch_size: input should be a valid integer" in errors


def test_config_schema(medtrain: Any) -> None:
    schema = json.loads(medtrain("config", "schema", "--plugin", "light_plugin").stdout)
    assert "num_epochs" in schema["$defs"]["OptimizationSection"]["properties"]
    assert schema["$defs"]["light_plugin"]["properties"]["dropout"]["default"] == 0.0
    assert schema["properties"]["plugins"]["properties"]["light_plugin"] == {"$ref": "#/$defs/light_plugin"}


def test_plugins_info_and_explain(medtrain: Any) -> None:
    info = json.loads(medtrain("plugins", "info", "light_plugin", "--json").stdout)
    dropout = {"name": "dropout", "type": "float", "default": 0.0, "description": "share of what is dropped"}
    assert info["options"][0] == dropout
    assert info["hooks"] == ["build_scheduler", "plugin_options"] and info["presets"] == []
    text = medtrain("plugins", "info", "light_plugin").stdout
    assert "Options of [plugins.light_plugin]" in text and "toy-plugin 1.0" in text
    assert "list[int]" in text and "[1, 2]" in text
    pair = ("medtrain.testing:ToyTask", "toy_plugin")
    rows = {row["hook"]: row for row in json.loads(medtrain("plugins", "explain", *pair, "--json").stdout)}
    assert rows["build_model"]["plugins"] == ["toy_plugin", "medtrain.testing:ToyTask"]
    assert "core: AdamW" in medtrain("plugins", "explain", "light_plugin").stdout
    assert "did you mean 'light_plugin'" in medtrain("plugins", "info", "light_plugi", code=2).stderr


def test_doctor(medtrain: Any) -> None:
    (medtrain.folder / "file").write_text("")
    facts = json.loads(medtrain("doctor", "--json", code=1, MEDTRAIN_CACHE=str(medtrain.folder / "file")).stdout)
    assert any("set MEDTRAIN_CACHE to a folder that can" in problem for problem in facts["problems"])
    assert "toy_plugin" in facts["plugins"] and facts["packages"]["torch"]


@pytest.mark.parametrize(
    ("number", "code", "status"),
    [
        (signal.SIGINT, 130, "interrupted"),
        pytest.param(signal.SIGTERM, 75, "preempted", marks=pytest.mark.acceptance),
    ],
)
def test_a_signal_leaves_a_checkpoint_and_resume_goes_on(
    medtrain: Any, wait_for: Any, number: int, code: int, status: str
) -> None:
    rates = medtrain.folder / "rates-0"
    changes = ("toy_plugin.wait=0.05", "optimization.num_epochs=3", f"toy_plugin.witness={medtrain.folder}")
    options = [part for change in changes for part in ("--set", change)]
    process = medtrain.start("run", *TOY, *options, "--out", "cut", "--json")
    wait_for(lambda: rates.exists() and len(rates.read_text().split()) >= 4)
    os.kill(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    last = json.loads(output.splitlines()[-1])
    assert (last["status"], last["exit_code"]) == (status, code)
    assert "go on with `medtrain resume cut`" in errors and "Traceback" not in errors
    assert (medtrain.folder / "cut" / "split-0" / "status.json").read_text().count(status) >= 1
    if number == signal.SIGTERM:
        return  # how it goes on is the same
    done = medtrain("resume", "cut", "--set", "toy_plugin.wait=0", "--json").stdout
    assert json.loads(done.splitlines()[-1])["epochs"] == 3
    assert len(rates.read_text().split()) == 9  # every step once


@pytest.mark.acceptance
def test_killed_and_resumed_at_once(medtrain: Any, wait_for: Any) -> None:
    """Loader processes outlive a killed run by seconds; they do not hold its lock."""
    rates = medtrain.folder / "rates-0"
    changes = ("toy_plugin.wait=0.05", "data.num_workers=1", f"toy_plugin.witness={medtrain.folder}")
    options = [part for change in changes for part in ("--set", change)]
    process = medtrain.start("run", *TOY, *options, "--epochs", 3, "--out", "cut", "--quiet")
    wait_for(lambda: rates.exists() and len(rates.read_text().split()) >= 5)
    process.kill()
    process.wait()
    split = Maps.open(medtrain.folder / "cut").split(0)
    assert split.status()["status"] == "killed"
    said = medtrain("resume", "cut", "--set", "toy_plugin.wait=0", "--quiet")
    assert "epoch 3/3" not in said.stdout + said.stderr
    assert [record["step"] for record in split.history()] == [3, 6, 9]
