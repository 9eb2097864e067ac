"""`data check nodule`: what is wrong with scans, tables and manifests, and nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from medtrain.errors import DataError
from medtrain_plugins.imaging.volume import Volume
from medtrain_plugins.nodule.commands.data import check
from medtrain_plugins.nodule.preparation.check import check_mask, check_nodules, check_volume, quality, summary
from medtrain_plugins.nodule.preparation.prepare import prepare
from scan_files import chest, write_dicom, write_itk

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "luna16"


def run(*arguments: Any, code: int = 0) -> tuple[Result, dict[str, Any]]:
    result = CliRunner().invoke(check, [*map(str, arguments), "--json"])
    assert (3 if isinstance(result.exception, DataError) else result.exit_code) == code, result.output
    return result, json.loads(result.output.splitlines()[-1])


def volume(array: np.ndarray, spacing: tuple[float, float, float] = (1, 1, 1)) -> Volume:
    return Volume(array, np.diag([*spacing, 1.0])[[2, 1, 0, 3]][:, [0, 1, 2, 3]], "s")


GOOD = chest()


@pytest.mark.parametrize(
    ("array", "spacing", "failed"),
    [
        (GOOD, (1, 1, 1), {}),
        (GOOD[:31], (1, 1, 1), {"shape": "error"}),
        (GOOD, (0.05, 0.7, 0.7), {"spacing": "error"}),
        (GOOD, (11, 7, 7), {"spacing": "error"}),
        (GOOD, (2.5, 0.7, 0.7), {"anisotropy": "warning"}),
        (np.where(GOOD == 40, np.nan, GOOD), (1, 1, 1), {"finite": "error", "HU mean": "warning"}),
        (np.where(GOOD == 40, np.inf, GOOD), (1, 1, 1), {"finite": "error", "HU mean": "warning"}),
        (np.where(GOOD == 40, 3500, GOOD), (1, 1, 1), {"HU range": "error", "HU mean": "warning"}),
        (GOOD + 1024, (1, 1, 1), {"HU mean": "warning"}),
        (np.full((40, 40, 40), -800, np.int16), (1, 1, 1), {"contrast": "warning"}),
        (np.where(np.arange(40)[:, None, None] == 7, 0, GOOD), (1, 1, 1), {"zero slices": "warning"}),
    ],
)
def test_each_check_of_a_scan(array: np.ndarray, spacing: Any, failed: dict[str, str]) -> None:
    assert {one.check: one.severity for one in check_volume(volume(array, spacing), "scan")} == failed


def test_masks_and_nodules() -> None:
    mask = np.zeros((4, 4, 4), np.int16)
    assert [one.check for one in check_mask(mask, (4, 4, 4), "m")] == ["mask empty"]
    assert [one.check for one in check_mask(mask, (4, 4, 5), "m")] == ["mask shape"]
    assert [one.check for one in check_mask(mask - 1, (4, 4, 4), "m")] == ["mask values", "mask coverage"]
    mask[0] = 1
    assert check_mask(mask, (4, 4, 4), "m") == []
    found = check_nodules(volume(GOOD).geometry, [[5, 5, 5], [1, 5, 5], [-3, 5, 5]], ["a", "b", "c"], margin=4)
    assert [(one.where, one.check) for one in found] == [("b", "margin"), ("c", "outside")]


def test_figures_and_summary() -> None:
    figures = quality(volume(GOOD, (1, 1.05, 1)))
    assert figures["isotropic"] and figures["minimum"] == -1000 and figures["zero_slices"] == []
    assert figures["mean"] == pytest.approx(GOOD.mean()) and figures["std"] == pytest.approx(GOOD.std())
    told = summary(check_volume(volume(GOOD[:20] + 1024), "scan"), 9)
    assert (told["total_checks"], told["passed"], told["failed"], told["warnings"]) == (9, 8, 1, 1)
    assert not told["is_valid"] and "20 x 48 x 56" in told["errors"][0]


def test_tables_against_scans(tmp_path: Path) -> None:
    write_itk(tmp_path / "scans" / "a.mhd", GOOD, (1, 1, 1), (10, 20, 30))
    write_dicom(tmp_path / "scans" / "d", GOOD, (1, 1, 1), (0, 0, 0), series="2.25.4")
    rows = [
        "a,20,30,40,5",
        "a,20,30,40,5",
        "a,20,30,29,5",
        "2.25.4,20,30,39,5",
        "zz,1,2,3,4",
        "2.25.4,9000,0,0,4",
        "2.25.4,21,30,39,-1",
    ]
    table = tmp_path / "a.csv"
    table.write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\n" + "\n".join(rows) + "\n")
    for option in ((), ("--headers",)):
        result, report = run("--source", tmp_path / "scans", "--annotations", table, *option, code=3)
        assert report["tables"]["a.csv"] == {
            "rows": 7,
            "usable": 3,
            "repeated": ["a.csv:3"],
            "unknown_series": ["a.csv:6"],
            "implausible": ["a.csv:7"],
            "outside": ["a.csv:4"],
        }
        assert len(report["scans"]) == 2 and not report["summary"]["is_valid"]
        assert "a.csv:4: 20 x 30 x 29 mm is outside of the scan: voxel -1 x 10 x 10" in result.output
        assert "1 nodules have no diameter above 0: a.csv:8" in result.output


def test_an_unreadable_table_and_scan_are_findings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,1,x,3,4\n")
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.mhd").write_text("no header")
    result, report = run("--source", tmp_path / "scans", "--annotations", tmp_path / "a.csv", code=3)
    assert "a.csv:2: coordY is 'x'" in result.output and report["summary"]["failed"] == 2


def test_a_prepared_folder(tmp_path: Path) -> None:
    write_itk(tmp_path / "scans" / "a.mhd", GOOD, (1, 1, 1))
    (tmp_path / "a.csv").write_text("seriesuid,coordX,coordY,coordZ,diameter_mm\na,20,20,20,4\n")
    prepare(tmp_path / "scans", tmp_path / "out", annotations=tmp_path / "a.csv", split="none", workers=1)
    assert run("--manifest", tmp_path / "out")[1]["summary"]["is_valid"]
    np.save(tmp_path / "out" / "scans" / "a.npy", np.zeros((40, 48, 56), np.int16))
    assert "is not the file that was prepared" in run("--manifest", tmp_path / "out", code=3)[0].output


def test_nothing_to_check() -> None:
    assert CliRunner().invoke(check, []).exception is not None


@pytest.mark.skipif(not REAL.is_dir(), reason="the tables of LUNA16 are not here")
def test_the_real_tables(tmp_path: Path) -> None:
    lines = (REAL / "annotations.csv").read_text().splitlines()
    uid = lines[1].split(",")[0]
    bad = [lines[5], lines[9], "1.2.3.4,1,2,3,5", f"{uid},9999,0,0,5", f"{uid},-128.7,-175.3,500,5"]
    table = tmp_path / "annotations.csv"
    table.write_text("\n".join(lines + bad) + "\n")
    # A scan about as large as the real one, for the coordinates of one series.
    array = chest((64, 64, 64))
    write_itk(tmp_path / "scans" / f"{uid}.mhd", array, (9, 9, 5), (-290, -290, -335))
    arguments = [
        "--annotations",
        table,
        "--excluded",
        REAL / "annotations_excluded.csv",
        "--series",
        REAL / "seriesuids.csv",
    ]
    _, report = run(*arguments, code=3)
    account = report["tables"]["annotations.csv"]
    assert account["rows"] == 1191 and account["usable"] == 1187  # without the scan, one place cannot be judged
    assert account["repeated"] == ["annotations.csv:1188", "annotations.csv:1189"]
    assert account["unknown_series"] == ["annotations.csv:1190"] and account["implausible"] == ["annotations.csv:1191"]
    excluded = report["tables"]["annotations_excluded.csv"]
    assert excluded["rows"] == 35192 == excluded["usable"] + len(excluded["repeated"])
    _, report = run(*arguments, "--source", tmp_path / "scans", code=3)
    account = report["tables"]["annotations.csv"]
    assert account["outside"] == ["annotations.csv:1192"]
    told = [one["message"] for one in report["findings"] if one["check"] == "not compared"]
    assert told[0].startswith("1184 rows could not be compared")
    assert account["rows"] == account["usable"] + sum(len(rows) for rows in account.values() if isinstance(rows, list))
