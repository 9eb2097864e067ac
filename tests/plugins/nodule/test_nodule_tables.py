"""The LUNA16 tables: what is read, what is told, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.nodule.annotations.tables import Findings, read_findings, read_series
from medtrain_plugins.nodule.evaluation.evaluate import EvaluationSettings, evaluate_detections

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "luna16"
HEADER = "seriesuid,coordX,coordY,coordZ,probability"


def write(path: Path, *lines: str, end: str = "\n", encoding: str = "utf-8") -> Path:
    path.write_bytes((end.join(lines) + end).encode(encoding))
    return path


def test_values_are_read_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(200, 4)) * 10.0 ** np.random.default_rng(1).integers(-9, 4, (200, 4))
    lines = [f"s{i},{','.join(map(repr, row))}" for i, row in enumerate(values.tolist())]
    found = read_findings(write(tmp_path / "c.csv", HEADER, *lines), "candidates")
    assert found.score is not None
    assert (found.xyz == values[:, :3]).all() and (found.score == values[:, 3]).all()
    assert found.series[7] == "s7" and found.place(7) == "c.csv:9" and np.isnan(found.diameter).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_marks_line_ends_and_separators(tmp_path: Path, encoding: str, end: str, separator: str) -> None:
    lines = [HEADER, "a,1,2,3,0.5", "", ' b ,-1.5,2e1,3,"0.25"', ",,,,"]
    lines = [line.replace(",", separator) for line in lines]
    found = read_findings(write(tmp_path / "c.csv", *lines, end=end, encoding=encoding), "candidates")
    assert found.series.tolist() == ["a", "b"] and found.score is not None and found.score.tolist() == [0.5, 0.25]
    assert found.xyz.tolist() == [[1, 2, 3], [-1.5, 20, 3]] and found.notes == ()
    assert found.place(1) == "c.csv:4"


def test_columns_may_stand_in_any_order_and_more_of_them(tmp_path: Path) -> None:
    header = "Probability,class,diameter_mm,coordZ,coordY,coordX,SERIESUID,malignancy,texture"
    rows = ["0.5,1,7.5,3,2,1,a,4,solid", "0.4,0,,3,2,1,a,,part-solid", "0.3,0,-2,3,2,1,a,1,solid"]
    found = read_findings(write(tmp_path / "c.csv", header, *rows), "candidates")
    assert found.xyz[0].tolist() == [1, 2, 3]
    assert found.diameter[0] == 7.5 and np.isnan(found.diameter[1:]).all()
    assert found.malignancy is not None and found.malignancy[0] == 4 and np.isnan(found.malignancy[1])
    assert found.texture is not None and found.texture.tolist() == ["solid", "part-solid", "solid"]
    assert found.notes == ("c.csv: 1 candidates have a diameter_mm of 0 or less: unknown",)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["seriesuid,coordX,coordY,coordZ,score", "a,1,2,3,0.5"], "has no probability; it has seriesuid, coordX"),
        (["seriesuid,coordX,coordY,cordZ,probability", "a,1,2,3,0.5"], "coordZ (did you mean 'cordZ'?)"),
        (["a,1,2,3,0.5", "b,1,2,3,0.4"], "Expected a CSV with seriesuid, coordX, coordY, coordZ, probability"),
        ([HEADER.replace(",", " "), "a 1 2 3 0.5"], "it has seriesuid coordX"),
        ([HEADER + ",CoordX", "a,1,2,3,0.5,1"], "names 'coordx' more than once"),
        ([""], "is empty"),
        ([HEADER, "a,1,2,3,0.5", "b,1,2,3"], "c.csv:3: 4 fields, the header has 5"),
        ([HEADER, "a,1,2,3,0.5,9"], "c.csv:2: 6 fields, the header has 5"),
        ([HEADER, "a,1,2,3,0.5", ",1,2,3,0.5"], "c.csv:3: no seriesuid"),
        ([HEADER, "a,1,2,3,0.5", "b,1,2,three,0.5"], "c.csv:3: coordZ is 'three', not a finite number"),
        ([HEADER, "a,1,2,3,nan"], "c.csv:2: probability is 'nan'"),
        ([HEADER, "a,1,inf,3,1"], "c.csv:2: coordY is 'inf'"),
        ([HEADER, "a,1,2,3,"], "c.csv:2: probability is ''"),
        ([HEADER.replace(",", ";"), "a;1,5;2;3;0,5"], "c.csv:2: coordX is '1,5'"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(DataError) as error:
        read_findings(write(tmp_path / "c.csv", *lines), "candidates")
    assert said in str(error.value)


def test_every_bad_row_is_counted(tmp_path: Path) -> None:
    rows = [f"a,1,2,{'x' if i % 2 else 3},0.5" for i in range(40)]
    with pytest.raises(DataError, match=r"20 values cannot be used(.|\n)*and 12 more"):
        read_findings(write(tmp_path / "c.csv", HEADER, *rows), "candidates")


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_findings(tmp_path / "missing.csv", "candidates")
    (tmp_path / "c.csv").write_bytes("seriesuid,coordX\n\xff\xfe".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_findings(tmp_path / "c.csv", "candidates")


def test_odd_rows_are_kept_and_told(tmp_path: Path) -> None:
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm"
    rows = ["a,1,2,3,6", "a,1,2,3,6", "b,1,2,3,-1", "b,9,2,3,0"]
    found = read_findings(write(tmp_path / "a.csv", header, *rows), "annotations")
    assert len(found) == 4 and found.diameter.tolist() == [6, 6, -1, 0]
    assert [note.split(";")[0] for note in found.notes] == [
        "a.csv: 1 rows repeat an earlier row (first of such: line 2)",
        "a.csv: 1 nodules have a negative diameter_mm (line 4)",
        "a.csv: 1 findings have a diameter_mm of 0 (line 5)",
    ]
    excluded = read_findings(tmp_path / "a.csv", "excluded")
    assert not any("negative" in note for note in excluded.notes)  # usual there
    with pytest.raises(DataError, match=r"a\.csv:2: diameter_mm is 'nan'"):
        read_findings(write(tmp_path / "a.csv", header, "a,1,2,3,nan"), "annotations")


def test_scans_with_and_without_a_header(tmp_path: Path) -> None:
    for lines in (["1.2", "1.3", "1.2", ""], ["seriesuid", "1.2", "1.3", "1.2"], ["1.2,x", "1.3,y", "1.2,z"]):
        uids, notes = read_series(write(tmp_path / "s.csv", *lines))
        assert uids == ["1.2", "1.3"]
        assert notes == ["s.csv: 1 series are listed more than once and count once: 1.2"]
    with pytest.raises(DataError, match="lists no series"):
        read_series(write(tmp_path / "s.csv", "seriesuid"))


def test_rows_of_unknown_scans_are_reported(tmp_path: Path) -> None:
    header = "seriesuid,coordX,coordY,coordZ,diameter_mm"
    annotations = read_findings(write(tmp_path / "a.csv", header, "a,1,2,3,6", "z,1,2,3,6"), "annotations")
    candidates = read_findings(
        write(tmp_path / "c.csv", HEADER, "a,1,2,3,0.5", "y,1,2,3,0.5", "x,1,2,3,0.5"), "candidates"
    )
    found = evaluate_detections(annotations, candidates, None, ["a"], EvaluationSettings(replicates=0))
    assert found.notes == [
        "1 annotated nodules of 1 series that are not among the scans are not scored (a.csv:3): z",
        "2 candidates of 2 series that are not among the scans are not scored (c.csv:3): y, x",
    ]
    assert found.counts["unknown_series"] == 2 and found.counts["candidates"] == 1 and found.counts["nodules"] == 1
    everything = evaluate_detections(annotations, candidates, None, None, EvaluationSettings(replicates=0))
    assert everything.counts["scans"] == 4 and "no list of scans was given" in everything.notes[0]


def test_findings_in_memory_are_checked() -> None:
    with pytest.raises(DataError, match="net, number 1: the score is not finite"):
        Findings.of(["a", "b"], [[0, 0, 0]] * 2, score=[0.1, np.nan], name="net")
    with pytest.raises(DataError, match="number 0: a coordinate is not finite"):
        Findings.of(["a"], [[0, np.inf, 0]], score=[0.1])
    with pytest.raises(DataError, match="diameter_mm has 1 values for 2 series"):
        Findings.of(["a", "b"], [[0, 0, 0]] * 2, [3.0])
    with pytest.raises(DataError, match="candidates need scores"):
        evaluate_detections(Findings.of([], [], []), Findings.of([], []), None, ["a"])


@pytest.mark.skipif(not REAL.is_dir(), reason="the LUNA16 tables are not here")
def test_the_real_tables() -> None:
    annotations = read_findings(REAL / "annotations.csv", "annotations")
    excluded = read_findings(REAL / "annotations_excluded.csv", "excluded")
    scans, notes = read_series(REAL / "seriesuids.csv")
    assert (len(annotations), len(excluded), len(scans)) == (1186, 35192, 888)
    assert notes == [] and annotations.notes == ()
    assert excluded.notes == (
        "annotations_excluded.csv: 11105 rows repeat an earlier row (first of such: line 2); all rows count",
    )
