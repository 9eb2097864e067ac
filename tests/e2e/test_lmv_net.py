"""LMV-Net on a small cohort through the real command line: run, resume, eval, predict, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

SMALL = [
    "--preset=demo",
    "--set=lmv_net.image_size=[32, 32]",
    "--set=lmv_net.bootstrap_replicates=50",
    "--set=data.batch_size=8",
    "--set=checkpoint.best=false",
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    folder = tmp_path_factory.mktemp("cohorts") / "cohort"
    synthesize(folder, patients=24, seed=3, image_size=(64, 48), workers=1)
    return folder


@pytest.fixture(scope="module")
def trained(cohort: Path, tmp_path_factory: pytest.TempPathFactory, command_line_in: Any) -> Any:
    """A command line in a folder that holds `run`, trained for one epoch."""
    medtrain = command_line_in(tmp_path_factory.mktemp("trained"))
    result = medtrain("run", "--plugin", "lmv_net", *SMALL, "--epochs=1", "--data", cohort, "--out", "run")
    assert "c_index" in result.stdout
    return medtrain


pytestmark = pytest.mark.timeout(200)


@pytest.mark.acceptance
def test_eval_writes_metrics_predictions_plots_and_report(trained: Any) -> None:
    summary = json.loads(trained("eval", "run", "--json").stdout.splitlines()[-1])
    folder = trained.folder / summary["out"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["metrics"]) >= {"c_index", "c_index_uno", *(f"auc_year_{y}" for y in range(1, 6))}
    low, high = summary["intervals"]["c_index"]
    assert low <= metrics["metrics"]["c_index"] <= high
    assert set(metrics["details"]["units"]) == {"sample", "exam", "patient"}
    assert set(metrics["details"]["strata"]) == {"density", "race", "cancer_type"}
    table = pd.read_parquet(folder / "predictions.parquet")
    assert len(table) == metrics["samples"] == len(pd.read_csv(folder / "predictions.csv"))
    risks = table[[f"risk_{year}" for year in range(1, 6)]].to_numpy()
    assert (np.diff(risks, axis=1) >= 0).all() and table["sample_id"].is_unique
    assert {"training.png", "risk_roc.png", "risk_calibration.png"} <= {p.name for p in folder.glob("plots/*.png")}
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list(folder.glob("plots/*.png")))
    assert "http://" not in page and "https://" not in page and "<script" not in page


@pytest.mark.acceptance
def test_evaluating_twice_gives_the_same_files(trained: Any) -> None:
    for name in ("once", "twice"):
        trained("eval", "run", "--group", "validation", "--out", name)
    for name in ("metrics.json", "predictions.csv", "report.html", "plots/risk_roc.png"):
        assert (trained.folder / "once" / name).read_bytes() == (trained.folder / "twice" / name).read_bytes()


@pytest.mark.acceptance
def test_another_cohort_is_evaluated_unless_the_model_was_fitted_on_it(trained: Any, cohort: Path) -> None:
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    refused = trained("eval", "run", "--data", cohort, code=3)
    assert "were used to fit this model" in refused.stderr
    other = trained.folder / "other"
    synthesize(other, patients=12, seed=9, image_size=(64, 48), workers=1)
    table = pd.read_csv(other / "cohort.csv", dtype=str)
    table["patient_id"] = "9" + table["patient_id"]
    table.to_csv(other / "cohort.csv", index=False)
    for image in list(other.glob("*/*.png")):
        image.rename(image.with_name("9" + image.name))
    summary = json.loads(trained("eval", "run", "--data", other, "--json").stdout.splitlines()[-1])
    assert summary["group"] == "all" and summary["metrics"]["c_index"] is not None


@pytest.mark.acceptance
def test_predict_needs_no_table(trained: Any, cohort: Path) -> None:
    images = trained.folder / "new"
    if not images.exists():
        shutil.copytree(cohort / "test", images)
    trained("predict", "run", images, "--out", "risks.csv")
    risks = pd.read_csv(trained.folder / "risks.csv", dtype={"patient_id": str})
    trained("eval", "run", "--out", "again")
    known = pd.read_csv(trained.folder / "again" / "predictions.csv").set_index("sample_id")
    assert set(risks["sample_id"]) == set(known.index)
    for row in risks.itertuples():
        assert row.risk_year_3 == pytest.approx(known.loc[row.sample_id, "risk_3"], abs=1e-5)


@pytest.mark.acceptance
def test_resume_adds_epochs(trained: Any) -> None:
    folder = trained.folder / "more"
    shutil.copytree(trained.folder / "run", folder)
    result = trained("resume", "more", "--set", "optimization.num_epochs=2", "--json")
    assert json.loads(result.stdout.splitlines()[-1])["epochs"] == 2


def test_a_run_says_which_pretrained_parts_it_lacks(medtrain: Any, cohort: Path, tmp_path: Path) -> None:
    result = medtrain("run", "--plugin", "lmv_net", "--preset", "paper", "--data", cohort, "--out", "r", code=2)
    assert "plugins.lmv_net.registration" in result.stderr and "plugins.lmv_net.encoder_weights" in result.stderr
    assert not (tmp_path / "r").exists()


def eight_bit(folder: Path) -> None:
    path = min(folder.glob("train/*.png"))
    Image.fromarray(np.full((64, 48), 9, dtype=np.uint8)).save(path)


def unreadable(folder: Path) -> None:
    min(folder.glob("train/*.png")).write_bytes(b"not a picture")


def truncated(folder: Path) -> None:
    path = min(folder.glob("train/*.png"))
    path.write_bytes(path.read_bytes()[:-200])


def constant(folder: Path) -> None:
    Image.fromarray(np.zeros((64, 48), dtype=np.uint16)).save(min(folder.glob("train/*.png")))


def missing_image(folder: Path) -> None:
    min(folder.glob("train/*.png")).unlink()


def two_groups(folder: Path) -> None:
    path = min(folder.glob("train/*_L_CC_*.png"))
    path.rename(folder / "test" / path.name)


def empty_group(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    (folder / "val").mkdir()


def edited(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "cohort.csv"
        change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)

    return apply


def with_value(column: str, value: str) -> Callable[[Path], None]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[4, column] = value
        return table

    return edited(change)


CORRUPTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "8-bit image": (eight_bit, "8"),
    "unreadable image": (unreadable, ".png"),
    "truncated image": (truncated, ".png"),
    "constant image": (constant, ".png"),
    "missing image": (missing_image, "cohort.csv"),
    "patient in two groups": (two_groups, "train"),
    "empty group": (empty_group, "val"),
    "contradictory rows": (edited(lambda t: pd.concat([t, t.iloc[[3]].assign(density="9")])), "row"),
    "negative time": (with_value("years_last_followup", "-2"), "row"),
    "time that is no number": (with_value("years_last_followup", "soon"), "row"),
    "unknown side": (with_value("ImageLateralityFinal", "X"), "row"),
    "unknown view": (with_value("view", "ML"), "row"),
    "date that is none": (with_value("study_date_anon", "2015-02-31"), "row"),
    "missing column": (edited(lambda t: t.drop(columns="years_last_followup")), "years_last_followup"),
    "empty table": (edited(lambda t: t.iloc[:0]), "cohort.csv"),
    "no table": (lambda folder: (folder / "cohort.csv").unlink(), "cohort"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_bad_cohort_is_refused_by_name(refused: Any, cohort: Path, tmp_path: Path, name: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(cohort, bad)
    corrupt, told = CORRUPTIONS[name]
    corrupt(bad)
    options = [*SMALL, "--epochs=1", "--set=lmv_net.image_size=[32, 32]", "--data", bad, "--out", "out"]
    errors = refused("run", "--plugin", "lmv_net", *options, code=3)
    assert told in errors and errors.startswith("Error: ") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set=optimization.learning_rat=1"], "learning_rate"),
        (["--set=lmv_net.dropuot=0.1"], "dropout"),
        (["--set=lmv_net.dropout=lots"], "plugins.lmv_net.dropout"),
        (["--set=lmv_net.image_size=[33, 32]"], "32"),
        (["--config=missing.toml"], "missing.toml"),
        (["--out=/proc/none/run"], "/proc"),
        (["--preset=dmeo"], "demo"),
        (["--set=lmv_net.registration=none.pth"], "none.pth"),
        (["--set=early_stopping.monitor=c_idnex"], "c_index"),
        (["--set=optimization.groups=[{pattern='nothing.*'}]"], "nothing.*"),
    ],
)
def test_a_bad_configuration_is_refused_by_key(
    refused: Any, cohort: Path, tmp_path: Path, arguments: list[str], told: str
) -> None:
    assert told in refused("run", "--plugin", "lmv_net", *SMALL, "--data", cohort, *arguments, code=2)
    assert not (tmp_path / "runs").exists()
