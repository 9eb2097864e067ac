"""The one transform from HU to what the network sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medtrain.errors import ConfigError
from medtrain_plugins.nodule.scans.intensity import Intensity
from spec_functions import clipped_fraction, of_centre

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "nodule_data.json").read_text())


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["id"].startswith("intensity")], ids=lambda c: c["id"])
def test_golden(case: dict[str, Any]) -> None:
    hu = np.array(case["inputs"]["hu"])
    transform = Intensity(case["params"]["window"], case["params"].get("target_range", (0, 1)))
    found = clipped_fraction(transform, hu) if "clip_fraction" in case["id"] else transform(hu)
    assert np.abs(np.asarray(found) - case["expected"]).max() <= case["atol"]


def test_a_bright_voxel_changes_no_other() -> None:
    hu = np.random.default_rng(0).integers(-1000, 400, (4, 5, 6)).astype(np.int16)
    metal = hu.copy()
    metal[0, 0, 0] = 30000
    assert (Intensity()(hu)[1:] == Intensity()(metal)[1:]).all()


def test_it_is_stored_and_taken_back() -> None:
    transform = of_centre(-600, 1500, (-1, 1))
    assert transform.window == (-1350, 150)
    again = Intensity.from_dict(json.loads(json.dumps(transform.as_dict())))
    hu = np.linspace(-2000, 1000, 50)
    assert again == transform and (again(hu) == transform(hu)).all() and again(hu).dtype == np.float32
    within = np.array([-1350.0, -600, 150])
    assert transform.to_hu(transform(within)) == pytest.approx(within, abs=1e-3)


def test_the_source_is_not_changed() -> None:
    hu = np.array([[-3000.0, 0]], dtype=np.float32)
    Intensity()(hu)
    assert hu[0, 0] == -3000


@pytest.mark.parametrize("window", [(400, -1000), (0, 0), (0, float("inf")), (1, 2, 3), "ab"])
def test_windows_that_are_none(window: Any) -> None:
    with pytest.raises(ConfigError, match="window"):
        Intensity(window)


def test_unknown_keys() -> None:
    with pytest.raises(ConfigError, match="width"):
        Intensity.from_dict({"width": 3})
