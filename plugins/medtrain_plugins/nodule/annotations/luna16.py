"""Assigns the rows of LUNA16 tables to their scans; every row is accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from medtrain.data import parse_numbers, read_cells
from medtrain.errors import DataError
from pydantic import ValidationError

from medtrain_plugins.imaging.volume import Geometry
from medtrain_plugins.nodule.annotations.tables import Findings
from medtrain_plugins.nodule.annotations.triage import score_nodule
from medtrain_plugins.nodule.scans.manifest import Nodule

# The scale of LIDC: 1 is ground glass, 5 is solid.
TEXTURES = {
    "solid": 5.0,
    "part-solid": 3.0,
    "part_solid": 3.0,
    "semi-solid": 3.0,
    "ground-glass": 1.0,
    "ground_glass": 1.0,
    "non-solid": 1.0,
    "ggo": 1.0,
}
_MORE = (
    "subtlety",
    "internal_structure",
    "calcification",
    "sphericity",
    "margin",
    "lobulation",
    "spiculation",
    "score",
    "growth",
)


@dataclass
class Account:
    """The outcome of each row of a table; the lists hold places such as "annotations.csv:7"."""

    rows: int = 0
    placed: int = 0
    repeated: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    other_series: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON; `placed` and the lengths of the lists add up to `rows`."""
        return {
            "rows": self.rows,
            "placed": self.placed,
            "repeated": self.repeated,
            "outside": self.outside,
            "other_series": self.other_series,
        }


def repeated_rows(findings: Findings) -> list[int]:
    """Rows equal to an earlier one in series, coordinates and diameter."""
    seen: set[tuple[Any, ...]] = set()
    repeated = []
    for index in range(len(findings)):
        key = (str(findings.series[index]), *findings.xyz[index].tolist(), float(findings.diameter[index]))
        if key in seen:
            repeated.append(index)
        seen.add(key)
    return repeated


def place_findings(
    findings: Findings, scans: Mapping[str, Geometry], more: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[dict[str, list[Nodule]], dict[str, list[Nodule]], Account]:
    """The rows of a table as nodules of the scans.

    scans: series -> geometry of the prepared array. more: place -> further fields of the nodule. Returns by series
    those inside the scan, those outside, and the account. A row that repeats another is counted, but not placed again.
    A diameter of 0 or less means unknown.
    """
    account = Account(rows=len(findings))
    inside: dict[str, list[Nodule]] = {}
    outside: dict[str, list[Nodule]] = {}
    again = set(repeated_rows(findings))
    for index in range(len(findings)):
        series, place = str(findings.series[index]), findings.place(index)
        if index in again:
            account.repeated.append(place)
            continue
        if series not in scans:
            account.other_series.append(place)
            continue
        geometry = scans[series]
        nodule = _nodule(findings, index, geometry, (more or {}).get(place, {}))
        if bool(geometry.contains(findings.xyz[index])[0]):
            inside.setdefault(series, []).append(nodule)
            account.placed += 1
        else:
            outside.setdefault(series, []).append(nodule)
            account.outside.append(place)
    return inside, outside, account


def read_characteristics(path: Path) -> dict[str, dict[str, Any]]:
    """Columns that describe nodules, in addition to the challenge's own: place ("a.csv:7") -> field -> value."""
    found: dict[str, dict[str, Any]] = {}
    header, rows, lines = read_cells(path)
    names = [name.lower() for name in header]
    for name in _MORE:
        if name not in names:
            continue
        cells = [row[names.index(name)] for row in rows]
        values: list[Any] = cells
        if name != "growth":
            numbers, bad = parse_numbers(cells, empty=True)
            if bad:
                raise DataError(f"{path.name}:{lines[bad[0]]}: {name} is {cells[bad[0]]!r}, not a number")
            values = numbers.tolist()
        for cell, value, line in zip(cells, values, lines, strict=True):
            if cell:
                found.setdefault(f"{path.name}:{line}", {})[name] = value
    return found


def score_of_nodule(values: Mapping[str, Any]) -> float | None:
    """The real-valued triage score, 1 to 10, of a nodule with fields as in the manifest; None without a malignancy."""
    if values.get("malignancy") is None:
        return None
    ratings = {name: values[name] for name in ("malignancy", "spiculation", "texture") if values.get(name) is not None}
    return score_nodule(ratings, values.get("diameter_mm"), values.get("growth")).value


def some(places: Sequence[str], limit: int = 5) -> str:
    """The first few of many, and how many more there are."""
    return ", ".join(places[:limit]) + (f" and {len(places) - limit} more" if len(places) > limit else "")


def _nodule(findings: Findings, index: int, geometry: Geometry, more: Mapping[str, Any]) -> Nodule:
    x, y, z = findings.xyz[index].tolist()
    voxel = geometry.to_voxel(findings.xyz[index]).tolist()
    diameter = float(findings.diameter[index])
    values: dict[str, Any] = dict(more)
    if findings.malignancy is not None and np.isfinite(findings.malignancy[index]):
        values["malignancy"] = float(findings.malignancy[index])
    if findings.texture is not None and (text := str(findings.texture[index]).strip().lower()):
        values["texture"] = _texture(text, findings.place(index))
    diameter_mm = diameter if diameter > 0 else None
    values.setdefault("score", score_of_nodule({**values, "diameter_mm": diameter_mm}))
    try:
        return Nodule(
            id=findings.place(index),
            world=(x, y, z),
            voxel=tuple(voxel),
            diameter_mm=diameter_mm,
            **values,
        )
    except ValidationError as error:
        one = error.errors()[0]
        raise DataError(f"{findings.place(index)}: {'.'.join(map(str, one['loc']))}: {one['msg']}") from None


def _texture(text: str, place: str) -> float:
    if text in TEXTURES:
        return TEXTURES[text]
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{place}: texture is {text!r}; give a number from 1 to 5, or {', '.join(TEXTURES)}") from None
