"""Which candidate found which nodule: the rules of LUNA16, and one fixed radius for all nodules.

Both match within a scan. Distances are Euclidean, in mm, between a candidate and the centre of a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from medtrain_plugins.nodule.annotations.tables import Findings

Array = npt.NDArray[Any]

UNMEASURED_RADIUS = 5.0  # radius in mm of findings with a negative diameter
PAIRS_AT_ONCE = 1_000_000


class Outcome(IntEnum):
    """The outcome of a candidate."""

    FALSE_POSITIVE = 0
    TRUE_POSITIVE = 1
    DUPLICATE = 2  # hits a nodule that a more suspicious candidate found
    IGNORED = 3  # hits an irrelevant finding and no nodule
    CAPPED = 4  # not among the most suspicious ones of its scan
    UNKNOWN_SERIES = 5  # in a scan that is not evaluated


@dataclass(frozen=True)
class Matching:
    """The outcome of every candidate and nodule.

    scans: the S scans evaluated. nodules: (G,) indices of the annotations in them; nodule_scan: (G,) 0..S-1; hit: (G,)
    the candidate that found each, or -1. candidate_scan: (C,) 0..S-1, or -1; outcome: (C,) values of `Outcome`.
    duplicates: hits after the first of each nodule, summed over nodules (a candidate within two nodules may be the
    first hit of one and a later hit of the other).
    """

    scans: tuple[str, ...]
    nodules: Array
    nodule_scan: Array
    hit: Array
    candidate_scan: Array
    outcome: Array
    duplicates: int

    @property
    def found(self) -> Array:
        """(G,) whether each nodule was found."""
        found: Array = self.hit >= 0
        return found

    def count(self, outcome: Outcome) -> int:
        return int((self.outcome == outcome).sum())

    def restricted(self, wanted: Array) -> Matching:
        """The matching of a part of the scans, (S,) bool, as if there were no others; duplicates are not counted."""
        nodules = wanted[self.nodule_scan]
        renumbered = np.cumsum(wanted) - 1
        elsewhere = (self.candidate_scan < 0) | ~wanted[self.candidate_scan]
        return Matching(
            tuple(uid for uid, kept in zip(self.scans, wanted, strict=True) if kept),
            self.nodules[nodules],
            renumbered[self.nodule_scan[nodules]],
            self.hit[nodules],
            np.where(elsewhere, -1, renumbered[self.candidate_scan]),
            np.where(elsewhere, Outcome.UNKNOWN_SERIES, self.outcome),
            0,
        )


def match_luna16(
    annotations: Findings,
    candidates: Findings,
    excluded: Findings | None,
    scans: Sequence[str],
    max_marks: int | None = None,
) -> Matching:
    """The matching of the LUNA16 challenge (Setio et al., Medical Image Analysis 2017).

    A candidate hits a finding when their squared distance is below the squared radius, strictly; the radius is half the
    diameter, or 5 mm where the diameter is negative. A nodule is found by the most suspicious candidate that hits it
    (the first in the table among equals); further hits are ignored. A candidate may find two nodules. Candidates that
    hit an irrelevant finding and no nodule are ignored. All others are false positives. max_marks: see `cap`.
    """
    state = _State.start(annotations, candidates, scans, max_marks)
    irrelevant = _Rows.of(excluded.series, scans) if excluded is not None else None
    score = _scores(candidates)
    duplicates = 0
    for scan in state.busy_scans():
        marks = state.kept_candidates(scan)
        points = candidates.xyz[marks]
        covered = np.zeros(len(marks), dtype=np.bool_)
        for rows, squared in _squared_distances(annotations.xyz, state.nodule_rows.of_scan(scan), points):
            inside = squared < _squared_radius(annotations.diameter[rows])[:, None]
            hits = inside.sum(axis=1)
            first = np.where(inside, score[marks], -np.inf).argmax(axis=1)
            state.hit[rows[hits > 0]] = marks[first[hits > 0]]
            duplicates += int((hits[hits > 0] - 1).sum())
            covered |= inside.any(axis=0)
        ignored = np.zeros(len(marks), dtype=np.bool_)
        if irrelevant is not None and excluded is not None:
            for rows, squared in _squared_distances(excluded.xyz, irrelevant.of_scan(scan), points):
                ignored |= (squared < _squared_radius(excluded.diameter[rows])[:, None]).any(axis=0)
        state.outcome[marks[ignored]] = Outcome.IGNORED
        state.outcome[marks[covered]] = Outcome.DUPLICATE
    state.outcome[state.hit[state.hit >= 0]] = Outcome.TRUE_POSITIVE
    return state.matching(duplicates)


def match_fixed_radius(
    annotations: Findings,
    candidates: Findings,
    scans: Sequence[str],
    max_distance: float = 10.0,
    max_marks: int | None = None,
) -> Matching:
    """The same radius for every nodule: each candidate, most suspicious first, takes the nearest free nodule.

    It must be within `max_distance` mm (inclusive). Candidates without a nodule are false positives, also further hits
    of a nodule. There are no irrelevant findings.
    """
    state = _State.start(annotations, candidates, scans, max_marks)
    score = _scores(candidates)
    for scan in state.busy_scans():
        marks = state.kept_candidates(scan)
        near: list[tuple[int, int, float]] = []
        for rows, squared in _squared_distances(
            annotations.xyz, state.nodule_rows.of_scan(scan), candidates.xyz[marks]
        ):
            distance = np.sqrt(squared)
            for row, mark in zip(*np.nonzero(distance <= max_distance), strict=True):
                near.append((int(marks[mark]), int(rows[row]), float(distance[row, mark])))
        for mark, row, _ in sorted(near, key=lambda pair: (-score[pair[0]], pair[0], pair[2], pair[1])):
            if state.hit[row] < 0 and state.outcome[mark] != Outcome.TRUE_POSITIVE:
                state.hit[row] = mark
                state.outcome[mark] = Outcome.TRUE_POSITIVE
    return state.matching(0)


def cap(scores: Array, max_marks: int | None) -> Array:
    """Which candidates of one scan stay, (C,) bool: all up to `max_marks`, else those above the (max_marks + 1)-th.

    They must be strictly more suspicious. So ties at the border are removed together, and fewer may stay."""
    if max_marks is None or len(scores) <= max_marks:
        return np.ones(len(scores), dtype=np.bool_)
    threshold = np.partition(scores, len(scores) - 1 - max_marks)[len(scores) - 1 - max_marks]
    kept: Array = scores > threshold
    return kept


@dataclass(frozen=True)
class _Rows:
    """The rows of a table by scan."""

    scan: Array
    order: Array
    starts: Array

    @classmethod
    def of(cls, series: Array, scans: Sequence[str]) -> _Rows:
        index = {uid: scan for scan, uid in enumerate(scans)}
        scan = np.array([index.get(uid, -1) for uid in series], dtype=np.int64)
        order = np.argsort(scan, kind="stable")
        return cls(scan, order, np.searchsorted(scan[order], np.arange(len(scans) + 1)))

    def of_scan(self, scan: int) -> Array:
        """The rows of one scan, in table order."""
        rows: Array = self.order[self.starts[scan] : self.starts[scan + 1]]
        return rows


@dataclass(frozen=True)
class _State:
    scans: tuple[str, ...]
    nodule_rows: _Rows
    candidate_rows: _Rows
    hit: Array  # by annotation
    outcome: Array

    @classmethod
    def start(cls, annotations: Findings, candidates: Findings, scans: Sequence[str], max_marks: int | None) -> _State:
        rows = _Rows.of(candidates.series, scans)
        outcome = np.where(rows.scan < 0, Outcome.UNKNOWN_SERIES, Outcome.FALSE_POSITIVE).astype(np.int8)
        if max_marks is not None:
            scores = _scores(candidates)
            for scan in range(len(scans)):
                marks = rows.of_scan(scan)
                outcome[marks[~cap(scores[marks], max_marks)]] = Outcome.CAPPED
        hit = np.full(len(annotations), -1, dtype=np.int64)
        return cls(tuple(scans), _Rows.of(annotations.series, scans), rows, hit, outcome)

    def busy_scans(self) -> Iterator[int]:
        """The scans with candidates."""
        return iter(np.flatnonzero(np.diff(self.candidate_rows.starts)).tolist())

    def kept_candidates(self, scan: int) -> Array:
        marks = self.candidate_rows.of_scan(scan)
        kept: Array = marks[self.outcome[marks] != Outcome.CAPPED]
        return kept

    def matching(self, duplicates: int) -> Matching:
        nodules = np.flatnonzero(self.nodule_rows.scan >= 0)
        return Matching(
            self.scans,
            nodules,
            self.nodule_rows.scan[nodules],
            self.hit[nodules],
            self.candidate_rows.scan,
            self.outcome,
            duplicates,
        )


def _squared_distances(xyz: Array, rows: Array, points: Array) -> Iterator[tuple[Array, Array]]:
    """Blocks of rows, and the squared distances (rows, points) of their findings to the points."""
    if not len(points):
        return
    step = max(1, PAIRS_AT_ONCE // len(points))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        # Term by term, in the order of the axes: the last bit decides hits exactly on the border.
        squared = np.square(xyz[block, 0, None] - points[None, :, 0])
        squared += np.square(xyz[block, 1, None] - points[None, :, 1])
        squared += np.square(xyz[block, 2, None] - points[None, :, 2])
        yield block, squared


def _squared_radius(diameter: Array) -> Array:
    radius: Array = np.where(diameter < 0, UNMEASURED_RADIUS, diameter / 2)
    return np.square(radius)


def _scores(candidates: Findings) -> Array:
    assert candidates.score is not None, "candidates have scores"
    return candidates.score
