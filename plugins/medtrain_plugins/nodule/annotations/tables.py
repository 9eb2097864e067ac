"""The tables of LUNA16: annotated nodules, irrelevant findings, candidates of a submission, the list of scans.

Every row is read or named in an error. Unusual but usable rows (duplicates, unknown diameters) are kept and reported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from medtrain.data import parse_numbers, read_cells
from medtrain.errors import DataError, first_lines, nearest

Array = npt.NDArray[Any]
Kind = Literal["annotations", "excluded", "candidates"]

SERIES, COORDINATES, DIAMETER, SCORE = "seriesuid", ("coordX", "coordY", "coordZ"), "diameter_mm", "probability"
MALIGNANCY, TEXTURE = "malignancy", "texture"


@dataclass(frozen=True)
class Findings:
    """Points in scans, N of them: nodules, irrelevant findings or candidates.

    series: (N,) text, the scan of each. xyz: (N, 3) float64, world coordinates in mm. diameter: (N,) float64, mm; NaN
    where unknown (candidates only), negative for findings without a measured size. score: (N,) float64, larger is more
    suspicious; None for annotations. malignancy: (N,) float64, NaN where unknown. texture: (N,) text. places: where
    each was read, such as "annotations.csv:7"; name: of the file, for messages. notes: messages from reading the table.
    """

    series: Array
    xyz: Array
    diameter: Array
    score: Array | None = None
    malignancy: Array | None = None
    texture: Array | None = None
    places: Sequence[str] | None = None
    name: str = "findings"
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.series)

    def place(self, index: int) -> str:
        """Where a finding comes from, for messages."""
        return self.places[index] if self.places is not None else f"{self.name}, number {index}"

    @classmethod
    def of(
        cls,
        series: Sequence[str] | Array,
        xyz: npt.ArrayLike,
        diameter: npt.ArrayLike | None = None,
        score: npt.ArrayLike | None = None,
        malignancy: npt.ArrayLike | None = None,
        texture: Sequence[str] | Array | None = None,
        name: str = "findings",
    ) -> Findings:
        """Findings from lists or arrays in memory; `name` stands for the file in messages.

        Raises DataError for coordinates or scores that are not finite, for infinite diameters (negative ones are
        allowed), and for columns of unequal length.
        """
        count = len(series)
        points = np.asarray(xyz, dtype=np.float64).reshape(-1, 3)
        columns: dict[str, Array | None] = {
            DIAMETER: np.full(count, np.nan)
            if diameter is None
            else np.asarray(diameter, dtype=np.float64).reshape(-1),
            SCORE: None if score is None else np.asarray(score, dtype=np.float64).reshape(-1),
            MALIGNANCY: None if malignancy is None else np.asarray(malignancy, dtype=np.float64).reshape(-1),
            TEXTURE: None if texture is None else np.asarray(texture, dtype=object),
        }
        for column, values in {"xyz": points, **columns}.items():
            if values is not None and len(values) != count:
                raise DataError(f"{name}: {column} has {len(values)} values for {count} series")
        found = cls(
            np.asarray(series, dtype=object),
            points,
            np.asarray(columns[DIAMETER]),
            columns[SCORE],
            columns[MALIGNANCY],
            columns[TEXTURE],
            name=name,
        )
        bad = [f"{found.place(i)}: a coordinate is not finite" for i in _not_finite(points).tolist()]
        if found.score is not None:
            bad += [f"{found.place(i)}: the score is not finite" for i in _not_finite(found.score).tolist()]
        if bad:
            raise DataError(f"{name}: {len(bad)} unusable\n{first_lines(bad)}")
        return found


def read_findings(path: str | Path, kind: Kind) -> Findings:
    """Reads a table of nodules, irrelevant findings or candidates.

    CSV or a similar table, as `medtrain.data.read_table` reads it, with a header. Needed:
    `seriesuid`, `coordX`, `coordY`, `coordZ`, and `diameter_mm` (annotations, excluded) or `probability` (candidates).
    Optional: `diameter_mm` of candidates, `malignancy`, `texture`; other columns are ignored. Raises DataError that
    names the columns or rows that cannot be used.
    """
    path = Path(path)
    header, rows, lines = read_cells(path)
    needed = [SERIES, *COORDINATES, SCORE if kind == "candidates" else DIAMETER]
    position = _columns(path, header, needed)
    series = np.array([row[position[SERIES]] for row in rows], dtype=object)
    problems = [f"{path.name}:{line}: no {SERIES}" for line, uid in zip(lines, series, strict=True) if not uid]
    numbers = {}
    for column in (*needed[1:], *(name for name in (DIAMETER, MALIGNANCY) if name in position and name not in needed)):
        values, bad = parse_numbers([row[position[column]] for row in rows], empty=column not in needed)
        wrong = bad if column not in needed else sorted({*bad, *_not_finite(values).tolist()})
        problems += [
            f"{path.name}:{lines[i]}: {column} is {rows[i][position[column]]!r}, not a finite number" for i in wrong
        ]
        numbers[column] = values
    if problems:
        raise DataError(
            f"{path}: {len(problems)} values cannot be used\n{first_lines(problems)}\nMend the rows named, or leave "
            "them out."
        )
    diameter = numbers.get(DIAMETER, np.full(len(rows), np.nan))
    notes = _duplicates(path, rows, lines)
    if kind == "candidates":
        unknown = ~(diameter > 0) & ~np.isnan(diameter)
        if unknown.any():
            notes.append(f"{path.name}: {int(unknown.sum())} candidates have a {DIAMETER} of 0 or less: unknown")
            diameter = np.where(unknown, np.nan, diameter)
    else:
        notes += _odd_diameters(path, diameter, lines, kind)
    return Findings(
        series,
        np.stack([numbers[column] for column in COORDINATES], axis=1) if rows else np.zeros((0, 3)),
        diameter,
        numbers.get(SCORE) if kind == "candidates" else None,
        numbers.get(MALIGNANCY),
        np.array([row[position[TEXTURE]] for row in rows], dtype=object) if TEXTURE in position else None,
        _Places(path.name, lines),
        path.name,
        tuple(notes),
    )


def read_series(path: str | Path) -> tuple[list[str], list[str]]:
    """Reads the list of scans: the first column of a file, with or without the header `seriesuid`.

    Returns the series in file order, each once, and notes. Raises DataError when there is none.
    """
    path = Path(path)
    first, rows, _ = read_cells(path)
    uids = [row[0] for row in [first, *rows] if row and row[0]]
    if uids and uids[0].lower() == SERIES:
        del uids[0]
    if not uids:
        raise DataError(f"{path}: lists no series; give one series uid a line")
    notes = []
    repeated = [uid for uid, count in Counter(uids).items() if count > 1]
    if repeated:
        notes.append(f"{path.name}: {len(repeated)} series are listed more than once and count once: {_some(repeated)}")
    return list(dict.fromkeys(uids)), notes


class _Places(Sequence[str]):
    """Texts such as "annotations.csv:7", made on access."""

    def __init__(self, name: str, lines: list[int]) -> None:
        self.name, self.lines = name, lines

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        return f"{self.name}:{self.lines[index]}"


def _columns(path: Path, header: list[str], needed: list[str]) -> dict[str, int]:
    """Column -> position, upper and lower case alike."""
    if not header:
        raise DataError(f"{path}: is empty; expected the columns {', '.join(needed)}")
    by_name = {name.lower(): index for index, name in enumerate(header)}
    if len(by_name) < len(header):
        double = [name for name, count in Counter(name.lower() for name in header).items() if count > 1]
        raise DataError(f"{path}: the header names {', '.join(map(repr, double))} more than once")
    missing = [name for name in needed if name.lower() not in by_name]
    if missing:
        hints = [f"{name}{nearest(name, header)}" for name in missing]
        raise DataError(
            f"{path}: the header has no {', '.join(hints)}; it has {', '.join(header)}. "
            f"Expected a CSV with {', '.join(needed)} in its first row."
        )
    known = (SERIES, *COORDINATES, DIAMETER, SCORE, MALIGNANCY, TEXTURE)
    return {name: by_name[name.lower()] for name in known if name.lower() in by_name}


def _duplicates(path: Path, rows: list[list[str]], lines: list[int]) -> list[str]:
    counts = Counter(map(tuple, rows))
    repeated = len(rows) - len(counts)
    if not repeated:
        return []
    example = next(line for row, line in zip(rows, lines, strict=True) if counts[tuple(row)] > 1)
    return [f"{path.name}: {repeated} rows repeat an earlier row (first of such: line {example}); all rows count"]


def _odd_diameters(path: Path, diameter: Array, lines: list[int], kind: Kind) -> list[str]:
    notes = []
    negative, zero = np.flatnonzero(diameter < 0), np.flatnonzero(diameter == 0)
    if len(negative) and kind == "annotations":
        notes.append(
            f"{path.name}: {len(negative)} nodules have a negative {DIAMETER} (line {lines[negative[0]]}); they are "
            "hit within 5 mm"
        )
    if len(zero):
        notes.append(
            f"{path.name}: {len(zero)} findings have a {DIAMETER} of 0 (line {lines[zero[0]]}); nothing hits them"
        )
    return notes


def _not_finite(values: Array) -> Array:
    finite = np.isfinite(values)
    return np.flatnonzero(~(finite.all(axis=1) if values.ndim == 2 else finite))


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def unknown_series_notes(tables: Mapping[str, Findings], scans: Sequence[str]) -> list[str]:
    """One note per table with rows of series that are not among the scans; those rows are not scored."""
    known = set(scans)
    notes = []
    for name, findings in tables.items():
        rows = [index for index, uid in enumerate(findings.series) if uid not in known]
        if rows:
            uids = list(dict.fromkeys(str(findings.series[index]) for index in rows))
            notes.append(
                f"{len(rows)} {name} of {len(uids)} series that are not among the scans are not scored "
                f"({findings.place(rows[0])}): {_some(uids)}"
            )
    return notes
