"""Candidates of a scan in any format: places, sizes, properties, transforms of the run, calibration, zip files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from found_scans import NODULES, ORIGIN, SPACING, Toy, found_in, pivot_options, scan_in
from medtrain import Run, RunConfig, Trainer, build_model
from medtrain.errors import ConfigError, DataError, UsageError
from medtrain.runtime.precision import choose_amp
from medtrain_cli.main import cli
from medtrain_cli.options import Request as Asked
from medtrain_plugins.nodule.annotations.tables import read_findings
from medtrain_plugins.nodule.inference.calibration import Calibration
from medtrain_plugins.nodule.inference.predict import (
    DetectedScan,
    Request,
    find_nodules,
    label_parts,
    open_scan,
    predict,
)
from medtrain_plugins.nodule.model.heads import DetectorOutput
from medtrain_plugins.nodule.options import PivotOptions
from medtrain_plugins.nodule.scans.resampling import resample
from scan_files import chest, write_dicom, write_itk
from torch import Tensor, nn

KINDS = ("mhd", "flipped", "nifti", "dicom", "zip")


def world_of(nodule: tuple[int, int, int, float]) -> np.ndarray:
    """x, y, z in mm of the centre of a phantom's nodule."""
    return np.array(ORIGIN) + np.array(nodule[2::-1]) * np.array(SPACING)


@pytest.mark.parametrize("kind", KINDS)
def test_nodules_are_found_where_they_are(kind: str, tmp_path: Path) -> None:
    found = found_in(scan_in(kind, tmp_path))
    assert len(found.findings) == 2
    for finding, nodule in zip(found.findings, NODULES, strict=True):
        assert np.linalg.norm(finding.world - world_of(nodule)) < 1.0
        # What is said of voxels, world and file is one place.
        np.testing.assert_allclose(found.volume.to_world(finding.voxel), finding.world, atol=1e-6)
        assert finding.candidate.diameter_mm == pytest.approx(8.0)


def test_all_formats_give_the_same(tmp_path: Path) -> None:
    tables = []
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        tables.append(found_in(scan_in(kind, tmp_path / kind)).table())
    same = [name for name in tables[0] if name != "seriesuid" and not name.startswith("index_")]
    for table in tables[1:]:
        for name in same:
            if tables[0][name].dtype.kind == "f":
                np.testing.assert_allclose(table[name], tables[0][name], atol=1e-5)
            else:
                assert table[name].tolist() == tables[0][name].tolist()


def test_indices_are_those_of_the_file(tmp_path: Path) -> None:
    plain = found_in(scan_in("mhd", tmp_path)).findings[0]
    assert plain.index == pytest.approx(plain.voxel[::-1])
    flipped = found_in(scan_in("flipped", tmp_path)).findings[0]
    assert flipped.index == pytest.approx((55 - plain.index[0], 47 - plain.index[1], plain.index[2]), abs=1e-6)
    nifti = found_in(scan_in("nifti", tmp_path)).findings[0]
    assert nifti.index == pytest.approx(plain.index, abs=1e-6)


def test_properties_are_measured_on_the_segmentation(tmp_path: Path) -> None:
    found = found_in(scan_in("mhd", tmp_path))
    for finding, nodule in zip(found.findings, NODULES, strict=True):
        measured = finding.properties
        assert measured is not None
        true = 4 / 3 * np.pi * nodule[3] ** 3 * np.prod(SPACING)
        assert measured.volume_mm3 == pytest.approx(true, rel=0.35)
        assert measured.sphericity > 0.8 and measured.mean_hu > -300 and measured.texture > 4
        # On the voxels of the prepared scan, not of what was cut out of it to measure.
        np.testing.assert_allclose(found.prepared.to_world(measured.centre), finding.world, atol=1.0)
    assert found.labels is not None and set(np.unique(found.labels)) == {0, 1, 2}
    at = tuple(round(n) for n in found.findings[1].candidate.zyx)
    assert found.labels[at] == 2


def test_without_a_segmentation_nothing_is_measured(tmp_path: Path) -> None:
    found = found_in(scan_in("mhd", tmp_path), Toy(segments=False))
    assert found.labels is None and all(finding.properties is None for finding in found.findings)
    table = found.table()
    assert table["volume_mm3"].isna().all() and (table["diameter_mm"] > 0).all()


def test_a_part_belongs_to_the_most_suspicious_candidate() -> None:
    from medtrain_plugins.nodule.inference.peaks import Candidate

    mask = np.zeros((20, 20, 20))
    mask[5:9, 5:9, 5:9] = 1
    near, other, far = (
        Candidate(zyx, score) for zyx, score in (((6, 6, 6), 0.9), ((8, 8, 8), 0.8), ((18, 18, 18), 0.7))
    )
    labels = label_parts(mask, [near, other, far], np.ones(3))
    assert (labels[mask > 0] == 1).all() and (labels[mask == 0] == 0).all()


def test_nothing_found_is_an_empty_table(tmp_path: Path) -> None:
    found = found_in(scan_in("mhd", tmp_path), threshold=1.0)
    table = found.table()
    assert len(table) == 0 and list(table)[:6] == [
        "seriesuid",
        "coordX",
        "coordY",
        "coordZ",
        "probability",
        "diameter_mm",
    ]
    assert {"voxel_z", "index_k", "triage_score", "risk_group", "mean_hu"} <= set(table)


def test_the_network_sees_what_it_was_trained_on(tmp_path: Path) -> None:
    """The run's spacing and window, and air beyond the scan."""
    seen: list[Tensor] = []

    class Look(nn.Module):
        def forward(self, image: Tensor) -> DetectorOutput:
            seen.append(image)
            return DetectorOutput(torch.full_like(image, -9.0))

    options = PivotOptions.model_validate(
        {"spacing": [2, 1.5, 1.5], "window": [-1200, 300], "sampling": {"patch_size": [64, 64, 64]}}
    )
    with open_scan(scan_in("mhd", tmp_path)) as volume:
        find_nodules(Look(), volume, options, device=torch.device("cpu"))
        prepared = resample(volume, (2, 1.5, 1.5))
    (window,) = seen
    expected = (np.clip(prepared.array, -1200, 300) + 1200) / 1500
    assert tuple(window.shape[2:]) == (64, 64, 64)
    before = [(64 - size) // 2 for size in prepared.shape]
    inner = window[0, 0][tuple(slice(a, a + n) for a, n in zip(before, prepared.shape, strict=True))]
    np.testing.assert_allclose(inner.numpy(), expected, atol=1e-5)
    assert float(window[0, 0, 0, 0, 0]) == pytest.approx(200 / 1500)


def test_lungs_only_looks_at_the_lungs(tmp_path: Path) -> None:
    """A ball outside of the body is found only where everything is looked at."""
    array = chest((40, 48, 112))
    array[:, :, 100:] = -1000
    z, y, x = np.mgrid[:40, :48, :112]
    array[(z - 20) ** 2 + (y - 24) ** 2 + (x - 108) ** 2 <= 9] = 20
    path = write_itk(tmp_path / "scan.mhd", array)

    def at(**inference: object) -> list[int]:
        found = found_in(path, window=[16], overlap=0.0, **inference)
        return [1 for finding in found.findings if finding.voxel[2] > 104]

    assert at() == [1] and at(lungs_only=True) == []


def make_run(**pivot: object) -> Run:
    config = RunConfig.model_validate({})
    config.plugins = {"pivot": pivot_options()}
    return Run(config, Toy(), torch.device("cpu"))


def test_the_hook_answers_with_a_table_or_with_everything(tmp_path: Path) -> None:
    scan, run = scan_in("dicom", tmp_path), make_run()
    table = predict(run, scan, pivot_options())
    everything = predict(run, Request(scan), pivot_options())
    assert isinstance(everything, DetectedScan) and everything.seconds > 0
    assert everything.table().equals(table)
    assert table["seriesuid"].tolist() == ["1.2.3", "1.2.3"]
    path = tmp_path / "c.json"
    Calibration(method="platt", slope=1.0, intercept=-2.0).write(path)
    calibrated = predict(run, scan, pivot_options(calibration=path))
    assert (calibrated["probability"] < table["probability"]).all()  # type: ignore[index]


def test_one_series_is_chosen_of_several(tmp_path: Path) -> None:
    folder = scan_in("dicom", tmp_path)
    write_dicom(folder / "other", np.zeros((4, 8, 8), dtype=np.int16), series="4.5.6")
    with pytest.raises(DataError, match="2 series"):
        predict(make_run(), folder, pivot_options())
    found = predict(make_run(), Request(folder, "1.2.3"), pivot_options())
    assert isinstance(found, DetectedScan) and len(found.findings) == 2


def test_a_zip_file_may_hold_one_volume(tmp_path: Path) -> None:
    scan = write_itk(tmp_path / "a" / "scan.mha", np.zeros((4, 5, 6), dtype=np.int16))
    packed = tmp_path / "scan.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(scan, "deep/scan.mha")
    with open_scan(packed) as volume:
        assert volume.shape == (4, 5, 6) and volume.provenance["path"] == str(packed)


def test_a_zip_file_does_not_write_outside(tmp_path: Path) -> None:
    packed = tmp_path / "evil.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("../../evil.dcm", "x")
    with pytest.raises(DataError, match="outside"), open_scan(packed):
        pass
    assert not list(tmp_path.parent.rglob("evil.dcm"))


def test_a_zip_file_without_a_scan_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "notes.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("notes.txt", "x")
    with pytest.raises(DataError, match=r"notes\.zip.*no DICOM images"), open_scan(packed):
        pass


def test_autocast_types() -> None:
    cpu = torch.device("cpu")
    assert choose_amp("auto", cpu) is None and choose_amp("bf16", cpu) is torch.bfloat16
    with pytest.raises(ConfigError, match="fp16"):
        choose_amp("fp16", cpu)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on four phantoms, whose candidates are many and bad."""
    changes = {
        "optimization.num_epochs": 1,
        "optimization.evaluation_interval": 1,
        "data.batch_size": 4,
        "pivot.demo_scans": 6,
        "pivot.model.base_filters": 4,
        "pivot.model.heads": '["heatmap", "offset", "log_diameter", "triage", "segmentation"]',
        "pivot.sampling.patches_per_volume": 1,
        "pivot.sampling.patch_size": "[32, 32, 32]",
        "pivot.evaluation.untrained": "false",
        "pivot.evaluation.loss_patches": 1,
        "pivot.inference.min_confidence": 0.001,
        # So generous that some hit by chance.
        "pivot.evaluation.protocol": "fixed_radius",
        "pivot.evaluation.max_distance": 60,
    }
    asked = Asked(plugin=["pivot"], preset="demo", set_=[f"{key}={value}" for key, value in changes.items()])
    out = tmp_path_factory.mktemp("nodules") / "run"
    Trainer(out, config=asked.resolve()).train()
    return out


def test_a_trained_run_detects_calibrates_and_predicts(trained: Path, tmp_path: Path) -> None:
    scan = scan_in("nifti", tmp_path)
    runner = CliRunner()
    done = runner.invoke(cli, ["predict", str(trained), str(scan)], catch_exceptions=False)
    assert done.exit_code == 0 and done.output.startswith("seriesuid,coordX")
    done = runner.invoke(cli, ["calibrate", "pivot", str(trained), "--method", "isotonic"], catch_exceptions=False)
    assert done.exit_code == 0 and "log-loss" in done.output
    calibration = Calibration.read(trained / "split-0" / "calibration.json")
    assert calibration.positives > 0
    out = tmp_path / "out"
    asked = ["detect", "nodule", str(trained), str(scan), "--out", str(out), "--tta", "flip_x", "--panels", "1"]
    done = runner.invoke(cli, asked, catch_exceptions=False)
    assert done.exit_code == 0 and f"files in {out}" in done.output
    import json

    document = json.loads((out / "detections.json").read_text())
    assert document["settings"]["inference"]["tta"] == ["flip_x"]
    assert document["settings"]["calibration"]["method"] == "isotonic"
    assert document["model"] == {"run": "run", "checkpoint": "best-cpm", "medtrain": "0.1.0"}
    assert len(document["candidates"]) == len(read_findings(out / "candidates.csv", "candidates").series) > 0
    done = runner.invoke(cli, [*asked, "--threshold", "1", "--json"], catch_exceptions=False)
    assert json.loads(done.output.splitlines()[-1])["candidates"] <= len(document["candidates"])


def test_runs_of_others_and_missing_scans_are_refused(trained: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    done = runner.invoke(cli, ["detect", "nodule", str(trained), "nowhere", "--out", str(tmp_path)])
    assert isinstance(done.exception, DataError)
    scan = scan_in("mhd", tmp_path)
    done = runner.invoke(
        cli, ["detect", "nodule", str(trained), str(scan), "--out", "x", "--tta", "all", "--tta", "flip_x"]
    )
    assert isinstance(done.exception, UsageError)
    done = runner.invoke(cli, ["calibrate", "pivot", str(trained), "--group", "train"])
    assert isinstance(done.exception, UsageError)


def test_a_trained_run_as_onnx_gives_the_maps_of_the_model(trained: Path, tmp_path: Path) -> None:
    import json

    import onnx
    import onnxruntime

    out = tmp_path / "detector.onnx"
    done = CliRunner().invoke(
        cli, ["export", str(trained), "--format", "onnx", "--out", str(out), "--json"], catch_exceptions=False
    )
    told = json.loads(done.output.splitlines()[-1])
    assert done.exit_code == 0 and told["checked"] and told["largest_difference"] < 1e-4
    noted = {entry.key: json.loads(entry.value) for entry in onnx.load(out).metadata_props}["medtrain"]
    options = Trainer.from_maps(trained).config.options("pivot")
    assert noted["spacing_zyx_mm"] == [1.25] * 3 and noted["window_hu"] == list(
        options.window
    )  # that of the demo scans
    assert noted["input"]["shape"] == ["batch_size", 1, *options.inference.window]
    image = np.random.default_rng(5).random((1, *noted["input"]["shape"][1:]), dtype=np.float32)
    maps = dict(zip(noted["outputs"], onnxruntime.InferenceSession(str(out)).run(None, {"image": image}), strict=True))
    assert list(maps["heatmap"].shape[1:]) == noted["outputs"]["heatmap"][1:]
    model = build_model("pivot", weights=trained).eval()
    with torch.no_grad():
        wanted = model(torch.from_numpy(image)).heatmap.sigmoid()
    np.testing.assert_allclose(maps["heatmap"], wanted.numpy(), atol=1e-5)
