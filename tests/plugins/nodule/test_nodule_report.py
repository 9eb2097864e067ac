"""What is written of a real evaluation: strict JSON, one row per nodule and mark, a page without foreign markup."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_cases import submission
from medtrain.errors import UsageError
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.evaluation.accuracy import MaskScore
from medtrain_plugins.nodule.evaluation.evaluate import EvaluationSettings, NoduleEvaluation, evaluate_detections
from medtrain_plugins.nodule.evaluation.report import LIMITS, write_evaluation

EVIL = '<script>alert("x")</script>'


def full(**changes: Any) -> NoduleEvaluation:
    """An evaluation with everything there can be in it, and with markup for names."""
    annotations, candidates, excluded, scans = submission(0)
    random = np.random.default_rng(0)
    annotations = Findings.of(
        annotations.series,
        annotations.xyz,
        annotations.diameter,
        malignancy=random.integers(0, 2, len(annotations)),
        texture=random.choice(np.array(["solid", EVIL], dtype=object), len(annotations)),
        name=EVIL,
    )
    assert candidates.score is not None
    candidates = Findings.of(
        np.where(candidates.series == "9.9", EVIL, candidates.series),
        candidates.xyz,
        random.uniform(3, 25, len(candidates)),
        candidates.score,
        malignancy=random.random(len(candidates)),
    )
    settings = EvaluationSettings(**{"replicates": 20, "max_marks": 30, **changes})
    masks = {"1.2.0": MaskScore(0.8, 0.7)}
    folds = dict.fromkeys(scans, EVIL)
    return evaluate_detections(annotations, candidates, excluded, scans, settings, subsets=folds, masks=masks)


def strict(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.parametrize("protocol", ["luna16", "fixed_radius"])
def test_everything_is_written(tmp_path: Path, protocol: str) -> None:
    found = full(protocol=protocol)
    files = write_evaluation(tmp_path / "out", found, "A title")
    told = strict(Path(files["json"]))
    assert (told["schema"], told["version"], told["protocol"]) == ("medtrain-nodule-evaluation", 1, protocol)
    assert told["cpm"] == found.cpm and told["counts"] == found.counts
    assert list(told["sensitivity"]) == ["0.125", "0.25", "0.5", "1", "2", "4", "8"]
    assert list(told["sensitivity"].values()) == told["sensitivities"] == found.sensitivities
    assert told["confidence"]["cpm"][0] <= told["cpm"] <= told["confidence"]["cpm"][1]
    assert told["curve"]["threshold"][0] is None and told["curve"]["sensitivity"][0] == 0
    assert told["segmentation"]["mean_dice"] == 0.8 and told["triage"]["calibration"]["count"]
    page = Path(files["report"]).read_text()
    assert EVIL not in page and "&lt;script&gt;" in page and LIMITS in page
    assert page.count("data:image/png") == 3
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {
        "froc.png",
        "froc_strata.png",
        "diameters.png",
    }


def test_every_nodule_and_candidate_has_its_row(tmp_path: Path) -> None:
    found = full()
    with Path(write_evaluation(tmp_path, found, "A title")["cases"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    outcomes = Counter(row["outcome"] for row in rows)
    counts = found.counts
    assert outcomes["TP"] == counts["true_positives"] and outcomes["FN"] == counts["false_negatives"]
    assert outcomes["FP"] == counts["false_positives"] and outcomes["ignored"] == counts["ignored"]
    assert outcomes["capped"] == counts["capped"] and outcomes["unknown_series"] == counts["unknown_series"]
    hit = next(row for row in rows if row["outcome"] == "TP")
    apart = [float(hit[f"coord{axis}"]) - float(hit[f"nodule_coord{axis}"]) for axis in "XYZ"]
    assert float(hit["distance_mm"]) == pytest.approx(np.linalg.norm(apart), rel=1e-5)
    assert float(hit["distance_mm"]) < float(hit["nodule_diameter_mm"]) / 2
    missed = next(row for row in rows if row["outcome"] == "FN")
    assert missed["probability"] == "" and missed["nodule"].startswith(EVIL)


def test_what_is_undefined_is_null_and_shown_as_such(tmp_path: Path) -> None:
    nothing = evaluate_detections(
        Findings.of([], [], []), Findings.of([], [], score=[]), None, ["A"], EvaluationSettings(replicates=5)
    )
    files = write_evaluation(tmp_path, nothing, "Empty")
    told = strict(Path(files["json"]))
    assert told["cpm"] is None and told["sensitivities"] == [None] * 7 and told["confidence"]["cpm"] == [None, None]
    assert told["size"]["mae"] is None and told["triage"] is None
    assert "no nodule is annotated" in Path(files["report"]).read_text().lower()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_evaluation(tmp_path / "file" / "out", full(), "A title")
