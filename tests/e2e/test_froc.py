"""`medtrain froc` on files: the numbers, the files, the errors; the real tables of LUNA16 with a large submission."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "luna16"


@pytest.fixture
def tables(medtrain: Any) -> Any:
    """The command line in a folder with the tables of three scans and three nodules, two of which are found."""
    rows = {
        "a.csv": ["seriesuid,coordX,coordY,coordZ,diameter_mm", "A,10,10,10,8", "A,30,30,30,6", "B,50,50,50,10"],
        "e.csv": ["seriesuid,coordX,coordY,coordZ,diameter_mm", "A,60,60,60,-1"],
        "c.csv": [
            "seriesuid,coordX,coordY,coordZ,probability",
            *("A,10,10,10,0.95", "A,11,10,10,0.85", "A,13,10,10,0.7", "A,60,60,60,0.65", "A,34,30,30,0.5"),
            *("B,20,20,20,0.9", "B,50,50,52,0.8", "B,90,90,90,0.4", "C,5,5,5,0.3", "C,7,7,7,0.2", "Z,1,1,1,0.99"),
        ],
        "s.csv": ["A", "B", "C"],
    }
    for name, lines in rows.items():
        (medtrain.folder / name).write_text("\n".join(lines) + "\n")
    return medtrain


FILES = ("--annotations", "a.csv", "--candidates", "c.csv", "--excluded", "e.csv", "--series", "s.csv")


def test_a_submission_is_scored(tables: Any) -> None:
    done = tables("froc", *FILES, "--bootstrap", 50, "--out", "out", "--json")
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == "completed" and told["cpm"] == pytest.approx(4 / 7)
    assert told["sensitivity"]["0.25"] == pytest.approx(1 / 3) and told["sensitivities"][2:] == pytest.approx(
        [2 / 3] * 5
    )
    assert told["counts"]["true_positives"] == 2 and told["counts"]["false_positives"] == 5
    assert told["counts"]["duplicates"] == 2 and told["counts"]["ignored"] == 1
    assert told["counts"]["unknown_series"] == 1 and any("c.csv:12" in note for note in told["notes"])
    assert told["confidence"]["replicates"] == 50 and len(told["confidence"]["cpm"]) == 2
    assert json.loads((tables.folder / "out" / "evaluation.json").read_text())["cpm"] == told["cpm"]
    assert "CPM  0.5714" in done.stdout
    assert tables("froc", *FILES, "--bootstrap", 50, "--json").stdout.splitlines()[-1].startswith('{"status"')


def test_options_change_the_score(tables: Any) -> None:
    def cpm(*options: Any) -> float:
        done = tables("froc", *FILES, "--bootstrap", 0, "--json", *options)
        return float(json.loads(done.stdout.splitlines()[-1])["cpm"])

    assert cpm("--max-marks", 1) < cpm()  # B keeps only a false positive
    assert cpm("--protocol", "fixed_radius") > cpm()  # 4 mm beside a nodule of 6 mm
    assert cpm("--protocol", "fixed_radius", "--max-distance", 0.5) < cpm()


def test_mistakes_are_explained(tables: Any) -> None:
    (tables.folder / "c.csv").write_text("seriesuid,coordX,coordY,coordZ,probability\nA,1,2,x,0.5\n")
    done = tables("froc", *FILES, code=3)
    assert "c.csv:2: coordZ is 'x', not a finite number" in done.stderr and "Traceback" not in done.stderr
    assert "belongs to --protocol fixed_radius" in tables("froc", *FILES, "--max-distance", 3, code=2).stderr
    assert "missing.csv: cannot be read" in tables("froc", *FILES, "--series", "missing.csv", code=3).stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="the LUNA16 tables are not here")
def test_200000_candidates_against_the_real_tables(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    uids = (REAL / "seriesuids.csv").read_text().split()
    nodules = [line.split(",") for line in (REAL / "annotations.csv").read_text().splitlines()[1:]]
    rows = [
        f"{uid},{float(x) + shift[0]!r},{float(y) + shift[1]!r},{float(z) + shift[2]!r},{score!r}"
        for (uid, x, y, z, _), shift, score in zip(
            nodules,
            random.normal(0, 1.5, (len(nodules), 3)).tolist(),
            random.beta(4, 2, len(nodules)).tolist(),
            strict=True,
        )
    ]
    count = 200_000 - len(rows)
    places = random.uniform(-250, 250, (count, 3)).tolist()
    for uid, xyz, score in zip(random.choice(uids, count), places, random.beta(1, 6, count).tolist(), strict=True):
        rows.append(f"{uid},{','.join(map(repr, xyz))},{score!r}")
    submission = tmp_path / "submission.csv"
    submission.write_text("seriesuid,coordX,coordY,coordZ,probability\n" + "\n".join(rows) + "\n")
    arguments = ["froc", "--annotations", REAL / "annotations.csv", "--excluded", REAL / "annotations_excluded.csv"]
    arguments += ["--series", REAL / "seriesuids.csv", "--candidates", submission, "--json"]
    code = (
        "import resource, sys\nfrom medtrain_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(used.ru_utime + used.ru_stime, peak)"  # ru_maxrss would begin at the size of this process
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    *_, line, used = done.stdout.splitlines()
    seconds, kilobytes = map(float, used.split())  # of the processor: the machine may be busy with other things
    told = json.loads(line)
    assert told["counts"]["nodules"] == 1186 and told["counts"]["scans"] == 888
    assert told["counts"]["candidates"] == 200_000 and told["confidence"]["replicates"] == 1000
    assert 0.3 < told["confidence"]["cpm"][0] < told["cpm"] < told["confidence"]["cpm"][1]
    assert seconds < 10 and kilobytes < 1_000_000
