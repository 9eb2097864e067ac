"""The launch scripts in examples/scripts, run from a folder that is not theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

SCRIPTS = Path(__file__).parents[2] / "examples" / "scripts"
MODELS = ["imgfeatalign", "lmv_net", "mirai", "oa_breacr", "vmra_mar"]
ALIGNING = ["imgfeatalign", "lmv_net"]

# Batch size, learning rate, weight decay, epochs.
PUBLISHED = {
    "imgfeatalign": (8, 5e-5, 1e-4, 30),
    "lmv_net": (4, 5e-5, 1e-4, 30),
    "mirai": (6, 5e-5, 1e-4, 40),
    "oa_breacr": (12, 5e-5, 1e-6, 30),
    "vmra_mar": (2, 1e-4, 1e-4, 40),
}

# What makes the published settings small.
TINY = [
    "--epochs=1",
    "--quiet",
    "--set=data.batch_size=8",
    "--set=data.num_workers=0",
    "--set=scheduler.warmup_steps=1",
    "--set=computational.device=cpu",
]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A working directory with blanks in its name, and `medtrain` on the path."""
    folder = tmp_path / "some where"
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "medtrain"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m medtrain "$@"\n')
    command.chmod(0o755)
    return folder


def launch(folder: Path, model: str, *arguments: Any, **env: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPTS / f"train_{model}.sh"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    variables["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([script, *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=250)


def test_there_is_one_for_every_model() -> None:
    assert sorted(path.name for path in SCRIPTS.iterdir()) == sorted(f"train_{model}.sh" for model in MODELS)


@pytest.mark.parametrize("model", MODELS)
def test_without_arguments_it_says_what_it_takes(elsewhere: Path, model: str) -> None:
    subprocess.run(["bash", "-n", SCRIPTS / f"train_{model}.sh"], check=True)
    for arguments in ([], ["table.csv", "images"]):
        result = launch(elsewhere, model, *arguments)
        assert result.returncode == 2 and result.stdout == ""
        first, *rest = result.stderr.splitlines()
        assert first == f"Usage: train_{model}.sh TABLE IMAGES OUT [OPTION...]"
        # All of the text, none of it taken for a command.
        assert any("`medtrain run`" in line for line in rest) and "not found" not in result.stderr
        assert ("REGISTRATION" in result.stderr) == (model in ALIGNING)


def test_what_it_is_given_reaches_the_command_line(elsewhere: Path) -> None:
    command = elsewhere / "bin" / "medtrain"
    command.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 7\n")
    env = {"MIRAI_ENCODER": "an encoder.p", "REGISTRATION": "a run"}
    result = launch(elsewhere, "lmv_net", "the table.csv", "the images", "the run", "--set", "run.seed=3", **env)
    assert result.returncode == 7  # that of medtrain
    assert result.stdout.splitlines() == [
        *("run", "--plugin", "lmv_net", "--preset", "paper"),
        *("--data", "the table.csv", "--images", "the images", "--out", "the run"),
        *("--set", "lmv_net.encoder_weights=an encoder.p", "--set", "lmv_net.registration=a run"),
        *("--set", "run.seed=3"),
    ]
    bare = launch(elsewhere, "lmv_net", "t", "i", "o", MIRAI_ENCODER="", REGISTRATION="")
    assert bare.stdout.splitlines()[-2:] == ["--out", "o"]


@pytest.mark.parametrize("model", MODELS)
def test_the_preset_they_use_holds_the_published_settings(model: str) -> None:
    preset = tomllib.loads((presets(model) / "paper.toml").read_text())
    optimization = preset["optimization"]
    assert PUBLISHED[model] == (
        preset["data"]["batch_size"],
        optimization["learning_rate"],
        optimization["weight_decay"],
        optimization["num_epochs"],
    )
    scheduler = preset["scheduler"]
    assert (scheduler["name"], scheduler["factor"], scheduler["patience"]) == ("plateau", 0.5, 5)
    assert preset["early_stopping"]["patience"] == 15


@pytest.mark.acceptance
@pytest.mark.parametrize("model", MODELS)
def test_it_trains(elsewhere: Path, model: str) -> None:
    from medtrain_plugins.mammography.model.backbone import mirai_backbone
    from medtrain_plugins.mammography.model.registration import MammoRegNet
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    synthesize(elsewhere / "the cohort", patients=12, seed=3, image_size=(64, 64), workers=1)
    save_file(mirai_backbone().state_dict(), elsewhere / "encoder.safetensors")
    save_file(MammoRegNet().state_dict(), elsewhere / "registration.safetensors")
    env = {"MIRAI_ENCODER": "encoder.safetensors", "REGISTRATION": "registration.safetensors"}
    settings = [f"--set={model}.image_size=[64, 64]", f"--set={model}.bootstrap_replicates=20"]
    if model == "oa_breacr":
        settings.append("--set=oa_breacr.encoder_weights=none")

    result = launch(elsewhere, model, "the cohort", "the cohort", "the run", *TINY, *settings, **env)

    assert result.returncode == 0, result.stderr
    config = tomllib.loads((elsewhere / "the run" / "config.toml").read_text())
    preset = tomllib.loads((presets(model) / "paper.toml").read_text())
    assert config["optimization"]["learning_rate"] == preset["optimization"]["learning_rate"]
    assert config["scheduler"]["name"] == "plateau" and config["early_stopping"]["patience"] == 15
    options = config["plugins"][model]
    assert options["image_size"] == [64, 64]
    if model != "oa_breacr":
        assert Path(options["encoder_weights"]).name == "encoder.safetensors"
    weights = load_file(elsewhere / "the run" / "split-0" / "last" / "model.safetensors")
    if model in ALIGNING:  # frozen: the very weights that the environment named
        given = load_file(elsewhere / "registration.safetensors")
        found = {key.split("mammo_reg_net.")[1]: value for key, value in weights.items() if "mammo_reg_net." in key}
        assert found.keys() == given.keys() and all((found[key] == given[key]).all() for key in given)


def presets(model: str) -> Path:
    import medtrain_plugins

    return Path(next(iter(medtrain_plugins.__path__))) / model / "presets"
