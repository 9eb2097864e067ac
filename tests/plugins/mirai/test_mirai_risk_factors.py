"""The table of risk factors, and how a cohort's table becomes vectors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from medtrain.errors import DataError
from medtrain_plugins.mirai.risk_factors import COLUMNS, OFFSETS, RISK_FACTORS, WIDTH, encode_risk_factors

PLACE = {factor.name: (number, OFFSETS[number]) for number, factor in enumerate(RISK_FACTORS)}


def test_names_and_widths():
    assert len(RISK_FACTORS) == len({factor.name for factor in RISK_FACTORS}) == len(COLUMNS) == 34
    assert WIDTH == 100
    widths = [4, 1, 1, 1, 1, 6, 5, 5, 6, 1, 13, 1, 4, 7, 7, 1, 6, 1, 4, *[1] * 12, 3, 5, 5]
    assert [factor.width for factor in RISK_FACTORS] == widths
    assert OFFSETS[-1] + RISK_FACTORS[-1].width == 100


def test_categories_and_yes_or_no():
    table = pd.DataFrame(
        {
            "factor_density": ["1", 4, "2.0", None],
            "factor_race": [13, "", "unknown", 1.0],
            "factor_parous": ["yes", 0, np.nan, "True"],
            "age": [57, 61, 44, 50],
        }
    )
    values, known = encode_risk_factors(table)
    assert values.dtype == known.dtype == np.float32
    assert values.shape == (4, 100) and known.shape == (4, 34)
    number, offset = PLACE["density"]
    assert known[:, number].tolist() == [1, 1, 1, 0]
    assert values[:, offset : offset + 4].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]
    number, offset = PLACE["race"]
    assert known[:, number].tolist() == [1, 0, 0, 1]
    assert values[0, offset + 12] == values[3, offset] == 1
    number, offset = PLACE["parous"]
    assert known[:, number].tolist() == [1, 1, 0, 1]
    assert values[:, offset].tolist() == [1, 0, 0, 1]
    assert values.sum() == 3 + 2 + 2 and known.sum() == 3 + 2 + 3


def test_the_density_of_the_cohort_is_one_and_its_race_is_not():
    values, known = encode_risk_factors(pd.DataFrame({"density": [3, -1], "race": [0, 2]}))
    assert known[:, 0].tolist() == [1, 0]
    assert values[0, 2] == 1
    assert known.sum() == values.sum() == 1
    values, _ = encode_risk_factors(pd.DataFrame({"density": [3], "factor_density": [1]}))
    assert values[0, :4].tolist() == [1, 0, 0, 0]


def test_a_table_without_factors():
    values, known = encode_risk_factors(pd.DataFrame({"sample_id": ["a", "b"]}))
    assert values.shape == (2, 100) and known.shape == (2, 34)
    assert not values.any() and not known.any()


def test_cells_that_are_no_category_are_named():
    table = pd.DataFrame({"factor_age": [3, 57], "factor_parous": ["2", "perhaps"], "factor_density": [0, "1.5"]})
    with pytest.raises(DataError) as found:
        encode_risk_factors(table)
    text = str(found.value)
    assert "5 risk factors" in text
    assert "row 1, factor_age: 57 is not a category 1..6" in text
    assert "row 0, factor_parous: '2' is not 0 or 1" in text
    assert "row 1, factor_density: '1.5' is not a category 1..4" in text
