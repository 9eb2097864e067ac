"""The table layouts of the two public cohorts: column names, codes, and how a row refers to its image.

EMBED (Jeong et al. 2023): images named `<patient>_<L|R>_<CC|MLO>_<YYYY-MM-DD>_<anything>.png`; a row names
patient, side, view and date. CSAW-CC (Strand 2022): a row names its file. Both: images in one folder, or in
the folders `train`, `val`, `test`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from medtrain.errors import ConfigError, DataError, nearest

EMBED_NAME = re.compile(
    r"(?P<patient_id>\d+)_(?P<laterality>[A-Z]+)_(?P<view>[A-Z]+)_(?P<date>\d{4}-\d{2}-\d{2})_.+\.png"
)
EMBED_PATTERN = "<digits>_<L|R>_<CC|MLO>_<YYYY-MM-DD>_<anything>.png"

# RACE_DESC of EMBED, spelt as in its files; the index is the code in tables and batches.
RACES: tuple[str, ...] = (
    "Caucasian or White",
    "African American  or Black",
    "Asian",
    "American Indian or Alaskan Native",
    "Native Hawaiian or Other Pacific Islander",
    "Multiple",
    "Unknown",
    "Unavailable or Unreported",
)

LATERALITIES = {"L": "L", "R": "R", "LEFT": "L", "RIGHT": "R"}
VIEWS = {"CC": "CC", "MLO": "MLO"}
FOLDERS = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
UNKNOWN = -1  # density, cancer type
EMBED_CANCER_TYPES: dict[int, str] = {
    0: "invasive",
    1: "non-invasive",
    2: "high-risk",
    3: "borderline",
    4: "benign",
    5: "negative",
    6: "non-breast",
}
CSAW_CANCER_TYPES: dict[int, str] = {1: "in situ", 2: "invasive, up to 15 mm", 3: "invasive, over 15 mm"}


def _codes(names: list[str], first: int) -> dict[str, int]:
    """Codes of a category: by name, and by the number itself (as a table may hold "2" or "2.0")."""
    numbers = range(first, first + len(names))
    return dict(zip(names, numbers, strict=True)) | {str(n): n for n in numbers}


@dataclass(frozen=True)
class Layout:
    """One table layout.

    required, optional: canonical name -> accepted column names, the first one found is read. codes: canonical name ->
    text of the table (upper case, single spaces) -> number. missing: the number of an empty cell, if it is not UNKNOWN.
    """

    name: str
    required: Mapping[str, tuple[str, ...]]
    optional: Mapping[str, tuple[str, ...]]
    codes: Mapping[str, Mapping[str, int]]
    missing: Mapping[str, int] = field(default_factory=dict)


EMBED = Layout(
    name="embed",
    required={
        "patient_id": ("patient_id", "empi_anon"),
        "laterality": ("ImageLateralityFinal", "ImageLaterality", "laterality"),
        "view": ("view", "ViewPosition"),
        "exam": ("study_date_anon", "study_date_year", "exam_date"),
        "years_to_cancer": ("Time_to_Cancer_Years", "years_to_cancer"),
        "years_to_followup": ("years_last_followup", "years_to_last_followup"),
    },
    optional={
        "density": ("density", "tissueden"),
        "cancer_type": ("path_severity", "cancer_type"),
        "race": ("RACE_DESC", "race"),
        "split": ("split",),
    },
    codes={
        "density": _codes(["A", "B", "C", "D"], 1),
        "cancer_type": {str(code): code for code in range(7)},
        "race": _codes([" ".join(name.upper().split()) for name in RACES], 0),
    },
    missing={"race": RACES.index("Unknown")},
)

CSAW = Layout(
    name="csaw",
    required={
        "file_name": ("file_name", "anon_filename"),
        "patient_id": ("patient_id", "anon_patientid"),
        "laterality": ("laterality", "imagelaterality"),
        "view": ("viewposition", "view"),
        "exam": ("exam_year",),
        "years_to_cancer": ("years_to_cancer",),
        "years_to_followup": ("years_to_last_followup", "years_last_followup"),
    },
    optional={"density": ("density_group",), "cancer_type": ("x_type", "cancer_type"), "split": ("split",)},
    codes={"density": _codes(["A", "B", "C"], 1), "cancer_type": {str(code): code for code in range(1, 4)}},
)

LAYOUTS = {layout.name: layout for layout in (EMBED, CSAW)}


def find_columns(found: list[str], layout: str, columns: Mapping[str, str]) -> tuple[Layout, dict[str, str]]:
    """The layout of a table with the columns `found`, and canonical name -> column for those it has.

    layout: "embed", "csaw" or "auto" (the one whose required columns are all there). columns: canonical name ->
    the column to read instead of the documented ones.
    Raises ConfigError for unknown names, DataError listing what is missing.
    """
    if layout not in (*LAYOUTS, "auto"):
        raise ConfigError(f"layout: {layout!r} is not one of 'auto', 'embed', 'csaw'")
    candidates = list(LAYOUTS.values()) if layout == "auto" else [LAYOUTS[layout]]
    known = {name for candidate in candidates for name in (*candidate.required, *candidate.optional)}
    for name, column in columns.items():
        if name not in known:
            hint = nearest(name, known)
            raise ConfigError(f"columns.{name}: no such column{hint}; there are {', '.join(sorted(known))}")
        if column not in found:
            raise ConfigError(f"columns.{name}: the table has no column {column!r}{nearest(column, found)}")
    misses: dict[str, list[str]] = {}
    for candidate in candidates:
        accepted = {**candidate.required, **candidate.optional}
        accepted |= {name: (column,) for name, column in columns.items() if name in accepted}
        mapped = {
            name: next(column for column in names if column in found)
            for name, names in accepted.items()
            if any(column in found for column in names)
        }
        missing = [name for name in candidate.required if name not in mapped]
        if not missing:
            return candidate, mapped
        misses[candidate.name] = [f"{name} ({' or '.join(accepted[name])})" for name in missing]
    lines = "\n".join(f"  - {name}: {', '.join(missing)}" for name, missing in misses.items())
    raise DataError(
        f"the table lacks columns; it has {', '.join(found)}. Missing by layout:\n{lines}\n"
        "Rename them or name yours in `columns`, e.g. columns = {patient_id = 'subject'}."
    )
