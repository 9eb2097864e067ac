"""Synthetic chest CT: what is in the tables is in the images."""

from __future__ import annotations

import csv
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from medtrain.errors import UsageError
from medtrain_plugins.nodule.annotations.luna16 import read_characteristics
from medtrain_plugins.nodule.annotations.tables import read_findings, read_series
from medtrain_plugins.nodule.commands.synth import synth
from medtrain_plugins.nodule.scans.manifest import read_manifest
from medtrain_plugins.nodule.scans.volume import read_volume
from medtrain_plugins.nodule.synthetic.phantom import DIAMETERS_MM, make_phantom
from medtrain_plugins.nodule.synthetic.synth import demo_manifest, make_scans, synthesize

SMALL = {"shape": (40, 56, 60), "spacing": (3.0, 2.0, 2.0)}


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_equal_seeds_write_equal_files_and_others_do_not(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(tmp_path / name, 4, seed, **SMALL)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")
    with pytest.raises(UsageError, match="not empty"):
        synthesize(tmp_path / "a", 4, 1, **SMALL)


def test_files_read_as_the_phantoms_with_nodules_where_the_tables_say(tmp_path: Path) -> None:
    counts = synthesize(tmp_path, 8, 0, **SMALL)
    nodules = read_findings(tmp_path / "annotations.csv", "annotations")
    excluded = read_findings(tmp_path / "annotations_excluded.csv", "excluded")
    assert (len(nodules), len(excluded)) == (counts["nodules"], counts["irrelevant"])
    assert (excluded.diameter == -1).all()
    assert (nodules.diameter >= DIAMETERS_MM[0]).all() and (nodules.diameter <= DIAMETERS_MM[1]).all()
    series, _ = read_series(tmp_path / "seriesuids.csv")
    oblique = reversed_axes = 0
    for scan in make_scans(8, 0, **SMALL):
        assert series[scan.number] == scan.series
        volume = read_volume(tmp_path / f"subset{scan.number}" / f"{scan.series}.mhd")
        np.testing.assert_array_equal(volume.array, scan.phantom.hu)
        np.testing.assert_allclose(volume.affine, scan.affine, atol=1e-9)
        for world, diameter in zip(nodules.xyz, nodules.diameter, strict=True):
            if str(nodules.series[np.flatnonzero((nodules.xyz == world).all(axis=1))[0]]) != scan.series:
                continue
            at = np.rint(volume.to_voxel(world[None])[0]).astype(int)
            if diameter > 8:
                assert volume.array[tuple(at)] > -700, "denser than lung"
        oblique += not np.allclose(np.abs(volume.direction).max(axis=0), 1)
        reversed_axes += any(flip for _, flip in volume.order)
    assert oblique == 2 and reversed_axes == 2


def test_characteristics_can_stand_in_for_the_annotations(tmp_path: Path) -> None:
    synthesize(tmp_path, 3, 0, **SMALL)
    plain, rated = table(tmp_path / "annotations.csv"), table(tmp_path / "characteristics.csv")
    assert [{key: row[key] for key in plain[0]} for row in rated] == plain
    found = read_findings(tmp_path / "characteristics.csv", "annotations")
    assert found.malignancy is not None and ((found.malignancy >= 1) & (found.malignancy <= 5)).all()
    assert "spiculation" in next(iter(read_characteristics(tmp_path / "characteristics.csv").values()))
    patients = table(tmp_path / "patients.csv")
    assert len({row["patient"] for row in patients}) == 3
    assert {row["split"] for row in patients} <= {"train", "validation", "test"}


def test_malignant_nodules_are_more_spiculated_and_less_often_solid() -> None:
    drawn = [
        nodule
        for index in range(60)
        for nodule in make_phantom(np.random.default_rng(index), (40, 56, 60), (3, 2, 2), 4, small=0).nodules
    ]
    benign = [nodule for nodule in drawn if nodule.malignancy <= 2]
    malignant = [nodule for nodule in drawn if nodule.malignancy >= 4]
    assert np.mean([n.spiculation for n in malignant]) > np.mean([n.spiculation for n in benign]) + 1.5
    assert np.mean([n.texture < 5 for n in malignant]) > np.mean([n.texture < 5 for n in benign]) + 0.15
    assert min(n.diameter_mm for n in drawn) < 6 and max(n.diameter_mm for n in drawn) > 18


def test_phantoms_look_like_a_chest_and_masks_have_the_size_of_the_nodules() -> None:
    phantom = make_phantom(np.random.default_rng(4), (64, 96, 96), (2.0, 1.6, 1.6), 3)
    hu = phantom.hu
    assert hu.dtype == np.int16
    assert hu[:, 0, 0].mean() == pytest.approx(-1000, abs=10), "air around the body"
    shares = [((hu > low) & (hu < high)).mean() for low, high in ((-950, -750), (-150, 120), (200, 1500))]
    assert shares[0] > 0.1 and shares[1] > 0.2 and shares[2] > 0.005, "lung, soft parts, bone"
    (z0, y0, x0), (z1, y1, x1) = phantom.lung_box
    for number, nodule in enumerate(phantom.nodules):
        if not nodule.relevant:
            continue
        volume = (phantom.mask == number + 1).sum() * 2.0 * 1.6 * 1.6
        assert volume ** (1 / 3) == pytest.approx((np.pi / 6) ** (1 / 3) * nodule.diameter_mm, rel=0.15)
        inside = np.argwhere(phantom.mask == number + 1)
        np.testing.assert_allclose(inside.mean(axis=0) * phantom.spacing, nodule.centre, atol=0.8)
        assert (inside.min(axis=0) >= [z0, y0, x0]).all() and (inside.max(axis=0) < [z1, y1, x1]).all()


def test_noise_is_as_loud_as_asked() -> None:
    def loudness(noise: float) -> float:
        phantom = make_phantom(np.random.default_rng(0), (40, 56, 60), (3, 2, 2), 0, small=0, noise_hu=noise)
        return float(phantom.hu[:, :3, :3].std())

    assert loudness(0) < 0.5
    assert loudness(40) == pytest.approx(2 * loudness(20), rel=0.25)


def test_demo_manifests_are_prepared_scans_with_enough_nodules_to_test_on(tmp_path: Path) -> None:
    rows = read_manifest(demo_manifest(tmp_path, 48, 0, **SMALL), verify=True)
    by_split = {name: [row for row in rows if row.split == name] for name in ("train", "validation", "test")}
    assert {name: len(found) for name, found in by_split.items()} == {"train": 24, "validation": 8, "test": 16}
    assert sum(len(row.nodules) for row in by_split["test"]) >= 40
    for row in rows[:4]:
        for nodule in row.nodules:
            np.testing.assert_allclose(row.geometry.to_voxel([nodule.world])[0], nodule.voxel, atol=1e-9)
            assert nodule.score is not None and 1 <= nodule.score <= 10
        assert row.mask is not None
        assert set(np.unique(np.load(row.mask))) - {0} == {nodule.label for nodule in row.nodules}


def test_the_command_says_what_it_wrote_and_refuses_nonsense(tmp_path: Path) -> None:
    run = CliRunner().invoke
    made = run(
        synth,
        ["--out", str(tmp_path / "a"), "--scans", "2", "--size", "40,56,60", "--spacing", "3,2,2", "--nodules", "0,1"],
    )
    assert made.exit_code == 0, made.output
    assert "2 scans with 1 nodules" in made.output
    assert len(list((tmp_path / "a").rglob("*.mhd"))) == 2
    for given in (["--size", "40,56"], ["--nodules", "x"], ["--spacing", "0,1,1"], ["--size", "40.5,56,60"]):
        assert run(synth, ["--out", str(tmp_path / "b"), *given]).exit_code == 2
    refused = run(synth, ["--out", str(tmp_path / "b"), "--size", "8,8,8"])
    assert isinstance(refused.exception, UsageError)
