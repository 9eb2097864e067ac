"""Small cohorts on disk, right as they are, for tests to spoil."""

from __future__ import annotations

from pathlib import Path

import pytest
from cohort_files import CohortFiles, noise


@pytest.fixture
def embed(tmp_path: Path) -> CohortFiles:
    """Four women, two exams each 521 days apart, both breasts in both views; 101 has cancer on the left."""
    files = CohortFiles(tmp_path / "embed")
    women = (("101", "train"), ("102", "val"), ("103", "test"), ("104", "train"))
    for patient, folder in women:
        for day, years in (("2015-08-03", 3), ("2017-01-05", 2)):
            for side in "LR":
                for view in ("CC", "MLO"):
                    files.images[f"{folder}/{patient}_{side}_{view}_{day}_1.png"] = noise(len(files.rows))
                    case = patient == "101" and side == "L"
                    files.rows.append(
                        {
                            "patient_id": patient,
                            "ImageLateralityFinal": side,
                            "view": view,
                            "study_date_anon": day,
                            "Time_to_Cancer_Years": years if case else "",
                            "years_last_followup": years,
                            "density": int(patient) - 100,
                            "path_severity": 0 if case else "",
                            "RACE_DESC": "African American  or Black" if patient == "102" else "",
                        }
                    )
    return files


@pytest.fixture
def csaw(tmp_path: Path) -> CohortFiles:
    """Three women, exams in 2010 and 2012; woman `b` has cancer."""
    files = CohortFiles(tmp_path / "csaw")
    for patient, folder in (("a", "train"), ("b", "val"), ("c", "test")):
        for year in (2010, 2012):
            for side in ("Left", "Right"):
                for view in ("CC", "MLO"):
                    name = f"{patient}_{year}_{side}_{view}.png"
                    files.images[f"{folder}/{name}"] = noise(len(files.rows))
                    files.rows.append(
                        {
                            "file_name": name,
                            "patient_id": patient,
                            "exam_year": year,
                            "laterality": side,
                            "viewposition": view,
                            "years_to_cancer": 2014 - year if patient == "b" else 100,
                            "years_to_last_followup": 2016 - year,
                            "density_group": "B",
                            "x_type": 2 if patient == "b" else "",
                        }
                    )
    return files


@pytest.fixture
def real_mammograms() -> Path:
    """Four real 16-bit mammograms, where the checkout has them beside it."""
    folder = Path(__file__).parents[4] / "shared" / "data" / "mammograms"
    if not folder.is_dir():
        pytest.skip("no real mammograms beside this checkout")
    return folder
