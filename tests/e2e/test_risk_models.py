"""Each mammography plugin on a small cohort through the real command line: run, resume, eval, predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

MODELS = ["imgfeatalign", "oa_breacr", "mirai", "vmra_mar"]
UNITS = {"imgfeatalign": "view", "oa_breacr": "view", "mirai": "exam", "vmra_mar": "exam", "mammo_reg_net": "view"}

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    folder = tmp_path_factory.mktemp("cohorts") / "cohort"
    synthesize(folder, patients=16, seed=3, image_size=(64, 64), workers=1)
    return folder


def small(model: str, cohort: Path, out: str, epochs: int) -> list[Any]:
    settings = [f"{model}.image_size=[64, 64]", f"{model}.augmentation=true", "data.batch_size=8"]
    if model != "mammo_reg_net":
        settings.append(f"{model}.bootstrap_replicates=20")
    options = [f"--set={setting}" for setting in settings]
    return ["run", "--plugin", model, "--preset=demo", f"--epochs={epochs}", *options, "--data", cohort, "--out", out]


@pytest.mark.parametrize("model", [*MODELS, "mammo_reg_net"])
def test_from_run_to_prediction(medtrain: Any, cohort: Path, tmp_path: Path, model: str) -> None:
    medtrain(*small(model, cohort, "whole", 2))
    records = [json.loads(line) for line in (tmp_path / "whole/split-0/history.jsonl").read_text().splitlines()]
    assert len(records) == 2 and all(record["train/loss"] == record["train/loss"] for record in records)

    # Evaluated twice, the same files.
    for name in ("once", "twice"):
        medtrain("eval", "whole", "--out", name)
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "twice" / name).read_bytes()

    # Prediction needs no table and gives what the evaluation gave.
    table = pd.read_csv(tmp_path / "once" / "predictions.csv").set_index("sample_id")
    medtrain("predict", "whole", cohort / "test", "--out", "predicted.csv")
    predicted = pd.read_csv(tmp_path / "predicted.csv").set_index("sample_id")
    assert set(predicted.index) == set(table.index)
    column = "ncc" if model == "mammo_reg_net" else "risk_3"
    given = predicted["ncc" if model == "mammo_reg_net" else "risk_year_3"]
    assert given.to_numpy() == pytest.approx(table.loc[predicted.index, column].to_numpy(), abs=1e-4)
    sides = predicted.index.str.extract(r"_([LR])_(CC|MLO)$").notna().all(axis=1)
    assert sides.all() if UNITS[model] == "view" else not sides.any()


@pytest.mark.parametrize("model", MODELS)
def test_resumed_is_uninterrupted(medtrain: Any, cohort: Path, tmp_path: Path, model: str) -> None:
    """Dropout, stochastic embeddings, calibration, augmentation: a run stopped after an epoch goes on bit for bit."""
    medtrain(*small(model, cohort, "whole", 2), "--set=scheduler.name=none")
    medtrain(*small(model, cohort, "parts", 1), "--set=scheduler.name=none")
    medtrain("resume", "parts", "--set", "optimization.num_epochs=2")
    whole, parts = (load_file(tmp_path / name / "split-0/last/model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all((parts[key] == value).all() for key, value in whole.items())


@pytest.mark.parametrize("model", ["lmv_net", "imgfeatalign"])
def test_registration_from_a_run(medtrain: Any, cohort: Path, tmp_path: Path, model: str) -> None:
    """A registration network trained from nothing goes into the risk model as it is, and stays so."""
    medtrain(*small("mammo_reg_net", cohort, "registration", 1))
    medtrain(*small(model, cohort, "run", 1), f"--set={model}.registration=registration")
    trained = next((tmp_path / "registration/split-0").glob("best-*/model.safetensors"))
    kept = load_file(tmp_path / "run/split-0/last/model.safetensors")
    for key, value in load_file(trained).items():
        found = [tensor for name, tensor in kept.items() if name.endswith(f"mammo_reg_net.{key}")]
        assert len(found) == 1 and (found[0] == value).all(), key


@pytest.mark.parametrize("model", MODELS)
def test_pretrained_parts_are_asked_for(medtrain: Any, cohort: Path, tmp_path: Path, model: str) -> None:
    arguments = ["run", "--plugin", model, "--preset", "paper", "--data", cohort, "--out", "r"]
    result = medtrain(*arguments, code=2)
    assert f"plugins.{model}.encoder_weights" in result.stderr and not (tmp_path / "r").exists()


@pytest.mark.parametrize("model", MODELS)
def test_published_defects_are_had_on_demand_only(medtrain: Any, cohort: Path, model: str) -> None:
    settings = ["--dry-run", f"--set={model}.compat=reference"]
    assert medtrain(*small(model, cohort, "r", 1), *settings).returncode == 0
    shown = medtrain("config", "show", "--plugin", model, "--preset", "demo").stdout
    assert 'compat = "fixed"' in shown
