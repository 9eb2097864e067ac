"""`medtrain benchmark risk`: models trained in processes of their own, one failing, one comparison of the rest."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from medtrain.errors import ConfigError
from medtrain_plugins.mammography.commands.benchmark import Request

SMALL = ("--set", "each.image_size=[32, 32]", "--set", "each.bootstrap_replicates=10", "--epochs", 1, "--quiet")
MODELS = ("--models", "mirai,oa_breacr,imgfeatalign")

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from medtrain_plugins.mammography.synthetic.synth import synthesize

    folder = tmp_path_factory.mktemp("cohorts") / "cohort"
    synthesize(folder, patients=24, seed=3, image_size=(64, 48), workers=1)
    return folder


@pytest.fixture(scope="module")
def done(cohort: Path, tmp_path_factory: pytest.TempPathFactory, command_line_in: Any) -> Any:
    """A command line in a folder with the benchmark `all`, in which ImgFeatAlign could not be trained."""
    medtrain = command_line_in(tmp_path_factory.mktemp("benchmark"))
    (medtrain.folder / "all" / "imgfeatalign").mkdir(parents=True)
    medtrain.arguments = ("benchmark", "risk", "--data", cohort, "--preset", "demo", *MODELS, *SMALL, "--out", "all")
    medtrain.result = medtrain(*medtrain.arguments, "--replicates", 50, code=1, timeout=280)
    return medtrain


def test_every_model_has_its_run_and_one_comparison_has_them_all(done: Any) -> None:
    folder = done.folder / "all"
    told = json.loads((folder / "comparison.json").read_text())
    assert [run["name"] for run in told["runs"]] == ["mirai", "oa_breacr"]
    assert [run["plugins"] for run in told["runs"]] == [["mirai"], ["oa_breacr"]]
    units = told["comparisons"][0]["units"]
    assert set(units) == {"exam", "patient"}
    scored = told["comparisons"][0]["exams_scored"]
    # Mirai needs no previous exam: only what both scored counts.
    assert scored["mirai"] > scored["oa_breacr"] == units["exam"]["counts"]["exams"]
    assert units["patient"]["scores"]["c_index"]["mirai"]["value"] is not None
    assert {path.name for path in (folder / "plots").iterdir()} >= {"values_patient.png", "compared_roc.png"}
    assert (folder / "mirai" / "split-0" / "evaluation-test" / "report.html").is_file()
    for text in (done.result.stdout, (folder / "report.html").read_text()):
        assert "c_index" in text and "auc_year_5" in text


def test_what_failed_is_said_and_the_others_went_on(done: Any) -> None:
    said = "all/imgfeatalign: not a run directory"
    assert f"imgfeatalign failed: {said}" in done.result.stdout
    assert f"imgfeatalign: {said}" in done.result.stderr and "Traceback" not in done.result.stderr
    assert f"imgfeatalign is missing: {said}" in (done.folder / "all" / "report.html").read_text()


def test_what_is_trained_is_kept_and_other_settings_are_noticed(done: Any) -> None:
    weights = done.folder / "all" / "mirai" / "split-0" / "last" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    result = done(*done.arguments, "--set", "oa_breacr.augmentation=false", "--json", code=1)
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["status"] == "failed" and set(told["failed"]) == {"oa_breacr", "imgfeatalign"}
    assert "all/oa_breacr was made with other settings" in told["failed"]["oa_breacr"]
    assert [run["name"] for run in told["runs"]] == ["mirai"] and told["replicates"] == 2000
    assert len(result.stdout.splitlines()) == 1 and "all/mirai is trained already" in result.stderr
    assert weights.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--models", "mira"), "there is no risk model 'mira' (did you mean 'mirai'?)"),
        (("--models", "mirai,mirai"), "name each model once"),
        (("--set", "each.image_sise=[32, 32]"), "plugins.mirai.image_sise: unknown key (did you mean 'image_size'?)"),
        (("--data", "nowhere.csv", "--preset", "demo"), "nowhere.csv"),
    ],
)
def test_mistakes_show_before_anything_is_trained(done: Any, arguments: tuple[str, ...], said: str) -> None:
    result = done("benchmark", "risk", *arguments, "--out", "never", code=3 if "nowhere.csv" in arguments else 2)
    assert said in result.stderr and "Traceback" not in result.stderr
    assert not (done.folder / "never").exists()


def test_a_cohort_without_groups_is_refused(cohort: Path, done: Any) -> None:
    import shutil

    mixed = done.folder / "mixed"
    mixed.mkdir()
    shutil.copy(cohort / "cohort.csv", mixed)
    for image in cohort.glob("*/*.png"):
        shutil.copy(image, mixed)
    result = done("benchmark", "risk", "--data", mixed, "--preset", "demo", "--models", "mirai", "--out", "x", code=3)
    assert "the same women for all of them" in result.stderr


def test_configurations_follow_preset_then_set_then_flags() -> None:
    request = Request(Path("/c.csv"), None, "demo", 7, 5, ["each.image_size=[32, 64]", "oa_breacr.compat=reference"])
    request.assignments = [*request.assignments, "optimization.num_epochs=3", "data.batch_size=2"]
    mirai, ordinal = request.resolve("mirai", "none"), request.resolve("oa_breacr", "none")
    for config, name in ((mirai, "mirai"), (ordinal, "oa_breacr")):
        assert config.options(name).image_size == (32, 64) and config.options(name).encoder_weights == "none"
        assert (config.optimization.num_epochs, config.run.seed, config.data.batch_size) == (7, 5, 2)
        assert config.data.table == Path("/c.csv") and config.run.plugins == [name]
    assert (mirai.options("mirai").compat, ordinal.options("oa_breacr").compat) == ("fixed", "reference")
    aligned = request.resolve("imgfeatalign", "/weights.safetensors")
    assert aligned.options("imgfeatalign").registration == "/weights.safetensors"
    with pytest.raises(ConfigError, match="no chosen plugin has it"):
        Request(None, None, "tiny", None, None, []).resolve("mirai")
    # The network that registers is no risk model: it takes what it knows of what each model is told.
    network = Request(None, None, "demo", None, None, ["each.image_size=[32, 64]", "each.compat=reference"])
    assert network.resolve("mammo_reg_net").options("mammo_reg_net").image_size == (32, 64)


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_five_models_on_the_demo_cohort(medtrain: Any, tmp_path: Path) -> None:
    """One command without data: all five trained, evaluated and compared, each far from chance."""
    started = time.monotonic()
    result = medtrain("benchmark", "risk", "--out", "demo", "--json", "--quiet", timeout=1700, OMP_NUM_THREADS="2")
    print(f"\n{result.stdout}\n{time.monotonic() - started:.0f} s")
    told = json.loads((tmp_path / "demo" / "comparison.json").read_text())
    assert {run["name"] for run in told["runs"]} == {"imgfeatalign", "lmv_net", "mirai", "oa_breacr", "vmra_mar"}
    (made,) = told["comparisons"]
    for name, score in made["units"]["patient"]["scores"]["c_index"].items():
        print(f"{name}: {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})")
        assert score["value"] >= 0.65
    assert len(list((tmp_path / "demo" / "plots").glob("*.png"))) >= 4
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
