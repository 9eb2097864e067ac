"""Splits of scans by patient into groups or folds, stratified by the number and the size of nodules."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import NamedTuple

from medtrain.data import assign_folds, hold_out
from medtrain.errors import DataError, UsageError

from medtrain_plugins.nodule.scans.manifest import ManifestRow

DEFAULT = "70/15/15"
# Patients with this many nodules or more are one stratum. Size limits in mm, as in guidelines.
_MANY = 4
_SIZES = (6.0, 10.0, 20.0)


class SplitMethod(NamedTuple):
    """How to split: fractions of training, validation and test; folds; by the folders subset0, ...; or not at all."""

    fractions: tuple[float, float, float] | None = None
    folds: int = 0
    subsets: bool = False


def parse_split(text: str) -> SplitMethod:
    """From "70/15/15", "5-fold", "subsets" or "none". Raises UsageError."""
    if text == "none":
        return SplitMethod()
    if text == "subsets":
        return SplitMethod(subsets=True)
    if match := re.fullmatch(r"(\d+)-fold", text):
        if int(match[1]) < 2:
            raise UsageError(f"--split {text}: at least 2 folds are needed")
        return SplitMethod(folds=int(match[1]))
    if match := re.fullmatch(r"(\d+)/(\d+)/(\d+)", text):
        parts = [int(part) for part in match.groups()]
        if sum(parts) == 100 and parts[0] > 0:
            return SplitMethod((parts[0] / 100, parts[1] / 100, parts[2] / 100))
    raise UsageError(
        f"--split {text}: give percentages of training, validation and test that add up to 100 (70/15/15), a number of "
        "folds (5-fold), subsets (the folders subset0, subset1, ... are the folds) or none"
    )


def assign_split(rows: list[ManifestRow], method: SplitMethod, seed: int) -> list[ManifestRow]:
    """The rows with `split` or `fold` set; all scans of a patient in one group.

    Groups are balanced in the number of nodules of a patient and in the size of the largest. The same seed gives the
    same split in any order of the rows. Raises DataError when there are too few patients.
    """
    if method.subsets:
        lacking = [row.series for row in rows if row.subset is None]
        if lacking:
            raise DataError(
                f"{len(lacking)} scans are in no folder subset0, subset1, ... ({lacking[0]}); try --split 10-fold"
            )
        return [row.model_copy(update={"fold": row.subset}) for row in rows]
    if not rows or (method.fractions is None and not method.folds):
        return rows
    patients = sorted({row.patient for row in rows})
    strata = _strata(rows)
    if method.folds:
        fold = assign_folds(patients, [strata[name] for name in patients], method.folds, seed)
        return [row.model_copy(update={"fold": fold[row.patient]}) for row in rows]

    assert method.fractions is not None
    _, validation, test = method.fractions
    wanted = {"test": _number(len(patients), test), "validation": _number(len(patients), validation)}
    if sum(wanted.values()) >= len(patients):
        raise DataError(
            f"{len(patients)} patients are too few for training, validation and test; give more scans, or --split none"
        )
    side = dict.fromkeys(patients, "train")
    for name, count in wanted.items():
        rest = [patient for patient in patients if side[patient] == "train"]
        for patient in hold_out(rest, [strata[one] for one in rest], count, seed):
            side[patient] = name
    return [row.model_copy(update={"split": side[row.patient]}) for row in rows]


def _number(patients: int, fraction: float) -> int:
    """At least one patient, unless the fraction is 0."""
    return max(round(patients * fraction), 1) if fraction else 0


def _strata(rows: list[ManifestRow]) -> dict[str, tuple[str, str]]:
    """Of each patient: the number of nodules (0 to 4 or more), and the size class of the largest."""
    diameters: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        diameters[row.patient] += [nodule.diameter_mm or 0.0 for nodule in row.nodules]
    return {
        patient: (
            f"{min(len(sizes), _MANY)} nodules",
            f"size {sum(max(sizes) >= limit for limit in _SIZES)}" if sizes else "no size",
        )
        for patient, sizes in diameters.items()
    }
