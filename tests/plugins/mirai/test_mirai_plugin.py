"""The plugin on a small cohort on disk: samples, a run, calibration by its command, exams that lack a view."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from medtrain import Trainer, build_model
from medtrain.config import Layers
from medtrain.errors import ConfigError, DataError, UsageError
from medtrain.plugins import Plugins
from medtrain_plugins.mammography.cohort.cohort import read_cohort
from medtrain_plugins.mammography.cohort.dataset import ExamDataset
from medtrain_plugins.mirai.calibration import Calibration
from medtrain_plugins.mirai.commands import calibrate
from medtrain_plugins.mirai.samples import exam_samples
from PIL import Image
from safetensors.torch import load_file

VIEWS = [(side, view) for side in "LR" for view in ("CC", "MLO")]


def write_cohort(folder: Path) -> Path:
    """Women with one exam of 32 x 32 images each; the sooner the cancer, the brighter the images."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for group, count in (("train", 24), ("val", 24), ("test", 12)):
        (folder / group).mkdir(parents=True)
        for woman in range(count):
            patient, years = f"{len(rows) // 4 + 100}", woman % 6 + 1  # 6: none within five years
            brightness = 8000 * (7 - years) + rng.normal(0, 3000)
            for side, view in VIEWS:
                pixels = np.clip(rng.normal(brightness, 500, (32, 32)), 0, 65535).astype(np.uint16)
                Image.fromarray(pixels).save(folder / group / f"{patient}_{side}_{view}_2016-01-01_1.png")
                rows.append(
                    {
                        "patient_id": patient,
                        "ImageLateralityFinal": side,
                        "view": view,
                        "study_date_anon": "2016-01-01",
                        "Time_to_Cancer_Years": years if years < 6 else "",
                        "years_last_followup": 6,
                        "density": woman % 4 + 1,
                    }
                )
    with (folder / "cohort.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("mirai") / "cohort")


def trainer(cohort: Path, out: Path, epochs: int, **options: Any) -> Trainer:
    layers = Layers()
    settings: dict[str, Any] = {
        "run": {"plugins": ["mirai"]},
        "data": {"table": str(cohort), "batch_size": 8},
        "optimization": {"num_epochs": epochs, "learning_rate": 1e-3},
        "computational": {"device": "cpu"},
        "plugins": {
            "mirai": {"image_size": [32, 32], "encoder_weights": "none", "hidden_dim": 64, "bootstrap_replicates": 10}
            | {"augmentation": False, "finetune_encoder": False, **options}
        },
    }
    layers.add(settings, "test")
    return Trainer(out, config=layers.build(Plugins.of(["mirai"]).options()))


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mirai") / "run"
    trainer(cohort, out, 4).train()
    return out


def test_sides_are_numbered_by_layout_and_compatibility():
    for compat, layout, sides in (
        ("fixed", "embed", [1, 1, 0, 0]),
        ("fixed", "csaw", [1, 1, 0, 0]),
        ("reference", "embed", [1, 1, 0, 0]),
        ("reference", "csaw", [0, 0, 1, 1]),
    ):
        constants = exam_samples(compat, 4, False).constants(layout)
        assert constants["side_seq"].tolist() == sides
        assert constants["view_seq"].tolist() == [0, 1, 0, 1]
        assert constants["time_seq"].tolist() == [0] * 4
        assert all(tensor.dtype == torch.int64 for tensor in constants.values())


def test_samples_with_fewer_views_and_risk_factors(cohort):
    whole = read_cohort(cohort).group("test")
    patient = whole.table["patient_id"].iloc[0]
    lost = (whole.table["patient_id"] == patient) & (whole.table["laterality"] == "L") & (whole.table["view"] == "MLO")
    part = type(whole)(whole.table[~lost].reset_index(drop=True), whole.layout)

    complete = exam_samples("fixed", 4, False)
    assert len(complete.make(whole)) == 12
    assert len(complete.make(part)) == 11
    assert set(ExamDataset(complete.make(part), complete)[0]).isdisjoint({"view_mask", "risk_factors"})

    some = exam_samples("fixed", 3, True)
    dataset = ExamDataset(some.make(part), some)
    assert len(dataset) == 12
    sample = next(sample for sample in dataset if sample["patient_id"] == patient)
    assert sample["images"].shape == (4, 1, 32, 32)
    assert sample["view_mask"].tolist() == [True, False, True, True]
    assert not sample["images"][1].any() and sample["images"][0].any()
    assert sample["risk_factors"].dtype == torch.float32 and sample["risk_factors"].shape == (100,)
    density = int(sample["density"])
    assert sample["risk_factors"].nonzero().flatten().tolist() == [density - 1]
    assert sample["risk_factors_known"].tolist() == [1.0] + [0.0] * 33

    none = type(whole)(part.table[part.table["view"] == "CC"].reset_index(drop=True), whole.layout)
    with pytest.raises(DataError, match="no exam has 3 of the views L_CC"):
        some.make(none)


def test_a_run_learns_and_predicts_what_it_evaluated(run, cohort):
    result = Trainer.from_maps(run).evaluate("test")
    assert result.metrics["c_index"] > 0.8
    assert set(result.details["units"]) == {"sample", "exam", "patient"}
    predicted = Trainer.from_maps(run).predict(cohort / "test").set_index("sample_id")
    risks = predicted.loc[list(result.rows["sample_id"]), [f"risk_year_{year}" for year in range(1, 6)]]
    np.testing.assert_allclose(risks.to_numpy(), result.rows["risk"], atol=1e-5)


def test_calibration_by_the_command(run, cohort, tmp_path):
    file = tmp_path / "calibration.json"
    result = CliRunner().invoke(calibrate, [str(run), "--out", str(file)], catch_exceptions=False)
    assert result.exit_code == 0
    assert str(file) in result.output
    lines = [line.split() for line in result.output.splitlines()[1:6]]
    assert [line[:3] for line in lines] == [[str(year + 1), "24", str(4 * (year + 1))] for year in range(5)]
    assert all(float(line[6]) <= float(line[5]) for line in lines)

    calibration = Calibration.read(file)
    raw = Trainer.from_maps(run).evaluate("test")
    scored = Trainer.from_maps(run, assignments=[f"mirai.calibration={file}"])
    calibrated = scored.evaluate("test")
    np.testing.assert_allclose(calibrated.rows["risk"], calibration.apply(raw.rows["risk"]), atol=1e-5)
    assert not np.allclose(calibrated.rows["risk"], raw.rows["risk"], atol=0.01)
    same = [name for name in raw.metrics if name != "loss"]
    assert {n: calibrated.metrics[n] for n in same} == pytest.approx({n: raw.metrics[n] for n in same}, nan_ok=True)
    predicted = scored.predict(cohort / "test").set_index("sample_id").loc[list(raw.rows["sample_id"])]
    np.testing.assert_allclose(predicted["risk_year_3"], calibrated.rows["risk"][:, 2], atol=1e-5)

    # Fitting again does not start from calibrated risks, whatever the run's configuration says.
    copied = tmp_path / "run"
    copied.mkdir()
    for path in run.iterdir():
        (copied / path.name).symlink_to(path)
    (copied / "config.toml").unlink()
    text = (run / "config.toml").read_text()
    assert 'calibration = ""' in text
    (copied / "config.toml").write_text(text.replace('calibration = ""', f'calibration = "{file}"'))
    CliRunner().invoke(calibrate, [str(copied)], catch_exceptions=False)
    assert Calibration.read(copied / "calibration.json") == calibration

    with pytest.raises(UsageError, match="trained on"):
        CliRunner().invoke(calibrate, [str(run), "--group", "train"], catch_exceptions=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        build_model("mirai", calibration=str(tmp_path / "none.json"))


def test_exams_that_lack_a_view_are_predicted(run, cohort, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    paths = sorted((cohort / "test").glob("*.png"))[:8]
    for path in paths:
        if "_R_MLO_" not in path.name or path.name.startswith(paths[0].name[:3]):
            (folder / path.name).symlink_to(path)
    complete = Trainer.from_maps(run).predict(folder).set_index("sample_id")
    both = Trainer.from_maps(run, assignments=["mirai.min_views=3"]).predict(folder).set_index("sample_id")
    assert len(complete) == 1 and len(both) == 2
    name = complete.index[0]
    pd.testing.assert_series_equal(both.loc[name], complete.loc[name], check_exact=False, rtol=1e-5)
    assert both.filter(like="risk_").notna().all(axis=None)


def test_a_run_with_risk_factors(cohort, tmp_path):
    made = trainer(cohort, tmp_path / "run", 1, risk_factors=True, min_views=3, mask_prob=0.1)
    result = made.train()
    assert {"train/loss_risk_factors", "train/loss_logit_output"} <= set(result.metrics)
    assert 0 < result.metrics["train/loss_risk_factors"] < 0.25 * 3
    evaluation = Trainer.from_maps(tmp_path / "run").evaluate("test")
    assert np.isfinite(evaluation.rows["risk"]).all()


def test_pretrained_parts_are_named_when_missing(cohort, tmp_path):
    with pytest.raises(ConfigError, match=r"plugins\.mirai\.encoder_weights"):
        trainer(cohort, tmp_path / "run", 1, encoder_weights="").train()
    with pytest.raises(ConfigError, match=r"plugins\.mirai\.transformer_weights: there is no file"):
        trainer(cohort, tmp_path / "run", 1, transformer_weights="none.p").train()
    assert not (tmp_path / "run").exists()


def test_the_transformer_of_a_run_is_taken_over(run, cohort, tmp_path):
    made = trainer(cohort, tmp_path / "next", 1, transformer_weights=str(run), encoder_weights=str(run))
    started = made.plugins.first_result("build_model", config=made.config)
    best = next((run / "split-0").glob("best-*/model.safetensors"))
    own, unused = started.state_dict(), ("transformer.fc.", "transformer.pred_masked_img_fc.")
    for key, tensor in load_file(best).items():
        assert torch.equal(own[key], tensor) or key.startswith(unused), key
