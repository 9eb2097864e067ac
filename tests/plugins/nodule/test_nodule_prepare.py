"""`data prepare nodule`: any scan to arrays and a manifest; parallel, resumable, complete or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from medtrain.errors import DataError, UsageError
from medtrain_plugins.nodule.commands.data import prepare as prepare_command
from medtrain_plugins.nodule.commands.data import show as show_command
from medtrain_plugins.nodule.preparation.prepare import ScanPreparation, prepare
from medtrain_plugins.nodule.scans.lungs import lung_mask
from medtrain_plugins.nodule.scans.manifest import read_manifest
from medtrain_plugins.nodule.scans.volume import read_volume
from scan_files import chest, rotation, write_dicom, write_itk, write_nifti

SHAPE, SPACING = (36, 44, 48), (2.0, 2.0, 2.5)
# Centres of balls in voxels z, y, x; the world is that of the scan of each name.
BALLS = {"one": (12.0, 22.0, 14.0), "two": (20.0, 20.0, 33.0), "2.25.3": (15.0, 24.0, 14.0), "four": (18.0, 22.0, 33.0)}
GEOMETRY = {
    "one": ((-50, -40, -300), np.eye(3)),
    "two": ((40, 30, -100), np.diag([-1.0, -1.0, 1.0])),
    "2.25.3": ((1.5, 2.5, 3.5), rotation(4, -3, 6)),
    "four": ((0, 0, 0), np.eye(3)),
}


def world_of(name: str) -> np.ndarray:
    origin, direction = GEOMETRY[name]
    return np.array(origin) + direction @ (np.array(BALLS[name])[::-1] * SPACING)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scans in four formats, LUNA16 tables of them, and what lies about in such folders."""
    folder = tmp_path_factory.mktemp("source")
    arrays = {name: chest(SHAPE, ((*ball, 2.5),)) for name, ball in BALLS.items()}
    write_itk(folder / "subset0" / "one.mhd", arrays["one"], SPACING, *GEOMETRY["one"])
    (folder / "subset1").mkdir()
    write_nifti(folder / "subset1" / "two.nii.gz", arrays["two"], SPACING, *GEOMETRY["two"])
    write_dicom(folder / "subset1" / "d", arrays["2.25.3"], SPACING, *GEOMETRY["2.25.3"], series="2.25.3")
    write_itk(folder / "subset0" / "four.nrrd", arrays["four"], SPACING, *GEOMETRY["four"])
    (folder / "notes.txt").write_text("x")
    rows = [f"{name},{','.join(map(repr, world_of(name).tolist()))},10,4,solid" for name in BALLS]
    rows += [rows[0], "four,500,0,0,5,,", "unknown,1,2,3,4,,"]
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm,malignancy,texture"
    (folder / "annotations.csv").write_text("\n".join([header, *rows]) + "\n")
    (folder / "excluded.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\none,-20,-20,-280,-1\n")
    return folder


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out") / "prepared"
    report = prepare(
        source, out, annotations=source / "annotations.csv", excluded=source / "excluded.csv", workers=2, split="none"
    )
    return out, report


def test_nodules_are_where_they_were(prepared: tuple[Path, dict[str, Any]]) -> None:
    rows = read_manifest(prepared[0], verify=True)
    assert [row.series for row in rows] == ["2.25.3", "four", "one", "two"]
    for row in rows:
        array, nodule = row.open(), row.nodules[0]
        assert array.dtype == np.int16 and row.spacing == pytest.approx((1, 1, 1))
        assert nodule.world == pytest.approx(world_of(row.series)) and nodule.diameter_mm == 10
        assert nodule.voxel == pytest.approx(row.geometry.to_voxel(nodule.world))
        bright = np.argwhere(array > -200)
        near = bright[np.linalg.norm(bright - nodule.voxel, axis=1) < 8]
        assert np.abs(near.mean(axis=0) - nodule.voxel).max() < 0.35
        assert nodule.malignancy == 4 and nodule.texture == 5 and nodule.score is not None and 1 <= nodule.score <= 10
    assert {row.series: row.subset for row in rows} == {"one": 0, "four": 0, "two": 1, "2.25.3": 1}
    assert {row.series: row.patient for row in rows}["2.25.3"] == "P7"
    assert [len(row.irrelevant) for row in rows] == [0, 0, 1, 0]


def test_every_row_of_the_tables_is_accounted_for(prepared: tuple[Path, dict[str, Any]]) -> None:
    out, report = prepared
    account = report["tables"]["annotations.csv"]
    assert account == {
        "rows": 7,
        "placed": 4,
        "repeated": ["annotations.csv:6"],
        "outside": ["annotations.csv:7"],
        "other_series": ["annotations.csv:8"],
    }
    kept = next(row for row in read_manifest(out) if row.series == "four").unplaced
    assert [one.id for one in kept] == ["annotations.csv:7"] and kept[0].world == (500, 0, 0)
    assert json.loads((out / "preparation.json").read_text())["tables"] == report["tables"]


def test_again_makes_nothing_again_and_says_the_same(source: Path, prepared: tuple[Path, dict[str, Any]]) -> None:
    out, _ = prepared
    manifest = (out / "manifest.jsonl").read_bytes()
    again = prepare(
        source, out, annotations=source / "annotations.csv", excluded=source / "excluded.csv", workers=1, split="none"
    )
    assert again["counts"]["existing"] == 4 and again["counts"]["prepared"] == 0
    assert (out / "manifest.jsonl").read_bytes() == manifest
    assert not list(out.rglob("*.new"))
    victim = out / "scans" / "one.npy"
    victim.with_suffix(".json").unlink()  # as after an interruption between both files
    third = prepare(source, out, workers=1, split="none")
    assert third["counts"]["prepared"] == 1 and third["counts"]["existing"] == 3
    prepare(source, out, annotations=source / "annotations.csv", excluded=source / "excluded.csv", split="none")
    assert (out / "manifest.jsonl").read_bytes() == manifest


def test_another_way_of_making_needs_another_folder(source: Path, prepared: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UsageError, match="made with spacing"):
        prepare(source, prepared[0], ScanPreparation(spacing=(2, 2, 2)), workers=1)


def test_lungs_are_found_and_scans_cut_to_them(source: Path, tmp_path: Path) -> None:
    truth = chest(SHAPE)
    mask = lung_mask(truth, (2.5, 2.0, 2.0))
    lungs = truth == -850
    assert (mask & lungs).sum() > 0.95 * lungs.sum() and (mask & ~lungs).sum() < 0.25 * lungs.sum()
    prepare(
        source, tmp_path, ScanPreparation(lungs="crop", margin=5), annotations=source / "annotations.csv", workers=1
    )
    whole = 80 * 88 * 96
    for row in read_manifest(tmp_path):
        assert np.prod(row.shape) < 0.75 * whole and row.lungs is not None
        assert np.load(row.lungs).shape == row.shape and np.load(row.lungs).any()
        nodule = row.nodules[0]
        assert nodule.world == pytest.approx(world_of(row.series))
        assert row.open()[tuple(np.rint(nodule.voxel).astype(int))] > -100


def test_unreadable_scans_are_listed_and_an_error_unless_allowed(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write_itk(folder / "good.mha", chest(SHAPE), SPACING)
    bad = write_itk(folder / "bad.mha", chest(SHAPE), SPACING)
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"1 of 2 scans cannot be read; the other 1 are prepared(.|\n)*bad.mha"):
        prepare(folder, tmp_path / "out", workers=1, split="none")
    assert [row.series for row in read_manifest(tmp_path / "out")] == ["good"]
    report = prepare(folder, tmp_path / "out", workers=1, split="none", allow_unreadable=True)
    assert [entry["source"] for entry in report["left_out"]] == ["bad.mha"]
    with pytest.raises(DataError, match="not one scan"):
        (tmp_path / "empty").mkdir()
        prepare(tmp_path / "empty", tmp_path / "none", workers=1)


def test_splits_by_patient(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    rows = ["seriesuid,patient"]
    for number in range(20):
        write_itk(folder / f"s{number:02}.mha", np.zeros((4, 4, 4), np.int16), (3, 3, 3))
        rows.append(f"s{number:02},p{number // 2}")
    (tmp_path / "patients.csv").write_text("\n".join(rows))

    def sides(out: str, split: str, seed: int = 0) -> dict[str, Any]:
        prepare(folder, tmp_path / out, patients=tmp_path / "patients.csv", split=split, seed=seed, workers=1)
        found: dict[str, set[Any]] = {}
        for row in read_manifest(tmp_path / out):
            found.setdefault(row.patient, set()).add(row.split or row.fold)
        assert all(len(side) == 1 for side in found.values()) and len(found) == 10
        return {patient: side.pop() for patient, side in found.items()}

    first = sides("out", "70/15/15")
    assert sorted(first.values()).count("train") == 6 and {"test", "validation"} <= set(first.values())
    assert sides("out", "70/15/15") == first != sides("out", "70/15/15", seed=1)
    assert sorted(sides("out", "5-fold").values()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for wrong in ("70/20", "80/15/15", "1-fold", "random"):
        with pytest.raises(UsageError, match="--split"):
            prepare(folder, tmp_path / "out", split=wrong)
    with pytest.raises(DataError, match="subset0"):
        prepare(folder, tmp_path / "out", split="subsets", workers=1)


def test_readings_of_lidc(tmp_path: Path) -> None:
    from test_nodule_lidc import nodule, ring, roi, write

    write_dicom(tmp_path / "scans", chest((36, 44, 48)), SPACING, (5, 6, 7), np.diag([1, 1, 1]), series="1.2.3")
    marks = [nodule("a", roi(9, ring(14, 22, 3)) + roi(10, ring(14, 22, 3)), score) for score in (2, 3, 5)]
    (tmp_path / "xml").mkdir()
    write(tmp_path / "xml" / "r.xml", marks[0] + nodule("alone", roi(20, ring(30, 20, 3)), 1), *marks[1:])
    write(tmp_path / "xml" / "far.xml", marks[0], series="7.7")
    (tmp_path / "xml" / "bad.xml").write_text("<html/>")
    report = prepare(tmp_path / "scans", tmp_path / "out", lidc=tmp_path / "xml", workers=1, split="none")
    row = read_manifest(tmp_path / "out")[0]
    assert len(row.nodules) == 1 and row.nodules[0].readers == 3 and row.nodules[0].malignancy == 3
    assert row.nodules[0].world == pytest.approx((5 + 14 * 2, 6 + 22 * 2, 7 + 9.5 * 2.5))
    assert len(row.irrelevant) == 1 and row.irrelevant[0].readers == 1
    assert row.mask is not None
    labels = np.load(row.mask)
    assert labels.shape == row.shape
    drawn = np.argwhere(labels == row.nodules[0].label)
    assert np.abs(drawn.mean(axis=0) - row.nodules[0].voxel).max() < 0.51
    assert len(drawn) == pytest.approx(5 * 5 * 2 * 2 * 2 * 2.5, rel=0.15)
    assert report["readings_without_scan"] == ["7.7"]
    assert [entry["source"] for entry in report["left_out"]] == ["bad.xml"]


def test_the_commands(source: Path, tmp_path: Path) -> None:
    run = CliRunner()
    arguments = ["--source", source, "--out", tmp_path / "out", "--annotations", source / "annotations.csv"]
    result = run.invoke(prepare_command, [*map(str, arguments), "--workers", "1", "--split", "none", "--json"])
    assert result.exit_code == 0, result.output
    assert "4 scans prepared, 0 there already" in result.output
    assert "1 are of series that are not among the scans: annotations.csv:8" in result.output
    assert json.loads(result.output.splitlines()[-1])["counts"]["nodules"] == 4
    shown = run.invoke(
        show_command, ["--manifest", str(tmp_path / "out"), "--series", "one", "--out", str(tmp_path / "p")]
    )
    assert shown.exit_code == 0, shown.output
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["one_nodule1.png", "one_overview.png"]
    single = [
        str(source / "subset1" / "d"),
        "--annotations",
        str(source / "annotations.csv"),
        "--out",
        str(tmp_path / "q"),
    ]
    shown = run.invoke(show_command, single)
    assert shown.exit_code == 0 and "1 nodules of series 2.25.3" in shown.output
    assert len(list((tmp_path / "q").glob("*.png"))) == 2


def test_a_prepared_scan_is_a_volume(prepared: tuple[Path, dict[str, Any]]) -> None:
    row = read_manifest(prepared[0])[0]
    volume = read_volume(row.image)
    assert volume.series == row.series and np.allclose(volume.affine, row.affine) and volume.shape == row.shape
