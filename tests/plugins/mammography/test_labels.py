"""Labels from the two numbers of a table row, and the rows of which none can be made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from medtrain.errors import DataError
from medtrain_plugins.mammography.cohort.labels import clean_followup, clean_ttc, label_problems, survival_targets

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "survival.json").read_text())
ROWS = GOLDEN["survival_targets"]["outputs"]["rows"]
TTC = [row["raw_time_to_cancer"] for row in ROWS]
FOLLOWUP = [row["raw_followup"] for row in ROWS]


def test_targets_are_the_reference_table() -> None:
    labels = survival_targets(TTC, FOLLOWUP)
    assert clean_ttc(TTC).tolist() == [row["clean_ttc"] for row in ROWS]
    assert clean_followup(FOLLOWUP).tolist() == [row["clean_followup"] for row in ROWS]
    np.testing.assert_array_equal(labels.target, [row["target"] for row in ROWS])
    np.testing.assert_array_equal(labels.mask, [row["y_mask"] for row in ROWS])
    assert labels.event_time.tolist() == [row["event_time"] for row in ROWS]
    assert labels.event_observed.tolist() == [row["event_observed"] for row in ROWS]
    assert (labels.target.dtype, labels.mask.dtype) == (np.float32, np.float32)
    assert (labels.event_time.dtype, labels.event_observed.dtype) == (np.int64, np.int64)


def test_cleaned_values_give_the_same_labels() -> None:
    raw, cleaned = survival_targets(TTC, FOLLOWUP), survival_targets(clean_ttc(TTC), clean_followup(FOLLOWUP))
    for one, other in zip(raw, cleaned, strict=True):
        np.testing.assert_array_equal(one, other)


def test_other_numbers_of_years() -> None:
    labels = survival_targets([2, None, 4], [2, 9, 9], n_years=3)
    assert labels.target.tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert labels.mask.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert labels.event_observed.tolist() == [1, 0, 0]


def test_empty_cells_of_every_kind_are_empty() -> None:
    empty = [None, "", "  ", math.nan, np.nan, "nan"]
    assert clean_ttc(empty[:5]).tolist() == [6] * 5
    assert clean_followup(empty[:5]).tolist() == [1] * 5
    assert label_problems(empty[5:], [1])[0] is not None  # text that is not a number is not an empty cell


@pytest.mark.parametrize(
    ("ttc", "followup", "word"),
    [
        (-1, 3, "negative"),
        (-0.5, 3, "negative"),
        (None, -2, "negative"),
        ("soon", 3, "'soon' is not a number"),
        (None, math.inf, "not a number"),
        (4, 1, "follow-up ends after 1"),
        (5.0, 2.9, "follow-up ends after 2.9"),
    ],
)
def test_impossible_rows_are_named_not_labelled(ttc: object, followup: object, word: str) -> None:
    assert word in (label_problems([ttc], [followup])[0] or "")
    with pytest.raises(DataError, match="row 1: .*" + word):
        survival_targets([None, ttc], [5, followup])


@pytest.mark.parametrize(
    ("ttc", "followup"),
    [(2, 1), (0, 0), (3, None), (100, 4), (8, 2), ("3", "5"), (2.9, 2)],
)
def test_possible_rows_have_no_problem(ttc: object, followup: object) -> None:
    assert label_problems([ttc], [followup]) == [None]


def test_cleaning_refuses_what_it_cannot_read() -> None:
    with pytest.raises(DataError, match="row 1: years to cancer: -3 is negative"):
        clean_ttc([1, -3])
    with pytest.raises(DataError, match="years of follow-up"):
        clean_followup(["x"])
    with pytest.raises(DataError, match=r"2 values .* but 1"):
        label_problems([1, 2], [3])
