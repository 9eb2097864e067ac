"""Stratified assignment of participants to parts: whole participants, balanced in several columns, in any row order.

Participants with equal values in every column form a cell. What divides evenly in a cell is assigned at once; the few
left over go, cell by cell, to the part that lacks them most in the columns' strata. Then parts exchange them until no
exchange brings the strata nearer to proportional. There is no drawing again until a draw fits, so small cohorts and
many columns work. Units may be groups (sites, families), which stay together; then sizes are as even as whole groups
allow. All counting is in integers, so that every machine gives the same result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from medtrain.errors import DataError, UsageError, first_lines
from medtrain.runtime.determinism import SPLIT, derive

# Quantile strata of a continuous column: at most this many.
MOST_BINS = 10
# Exchanges are sought among this many candidates on each side, the most promising ones.
_CANDIDATES = 128
_SWEEPS = 60
# Sizes come first where they can be exact, which is when each unit is one participant.
_EXACT = 1000
# Folds of the participants that are not held out need another random stream than the held-out set.
_HOLD_OUT, _FOLDS = range(2)

Strata = Sequence[Any]


def assign_folds(
    owners: Sequence[str],
    strata: Strata | None,
    k: int,
    seed: int,
    groups: Sequence[str] | None = None,
    repeat: int = 0,
) -> dict[str, int]:
    """The fold, 0 to k - 1, of each participant.

    owners: the participant of each row; participants may have several rows. strata: per row a value, or a tuple of
    values, to balance: categories, or numbers, which are cut into quantiles; a participant's first row counts. groups:
    per row the site or family, which stays in one fold. repeat: number of another assignment with the same seed.

    Fold sizes differ by at most one participant (with groups: as little as whole groups allow). Raises DataError when
    there are fewer participants or groups than folds, or a participant is in two groups.
    """
    if k < 2:
        raise UsageError(f"{k} folds: at least 2 are needed")
    names = first_rows(owners)
    units, unit_of = _units(owners, names, groups)
    if len(units) < k:
        what = "participants" if groups is None else "groups"
        raise DataError(f"{k} folds cannot be made of {len(units)} {what}; ask for at most {len(units)}")
    features = _features(names, strata, unit_of, len(units), len(names) // k)
    assignment = StratifiedAssignment(features, [1] * k, exact=groups is None)
    fold_of = assignment.draw(_generator(seed, _FOLDS, repeat))
    return {name: int(fold_of[unit]) for name, unit in zip(names, unit_of, strict=True)}


def hold_out(
    owners: Sequence[str], strata: Strata | None, wanted: int, seed: int, groups: Sequence[str] | None = None
) -> set[str]:
    """`wanted` participants to hold out; rows, strata and groups as in `assign_folds`.

    With groups, the number is the nearest that whole groups allow, at least one group. Raises DataError when nobody
    would be left.
    """
    return next(hold_outs(owners, strata, wanted, seed, groups))


def hold_outs(
    owners: Sequence[str], strata: Strata | None, wanted: int, seed: int, groups: Sequence[str] | None = None
) -> Iterator[set[str]]:
    """`hold_out`, again and again: equally balanced sets of different participants."""
    names = first_rows(owners)
    if wanted < 0 or (wanted and wanted >= len(names)):
        raise DataError(f"{wanted} of {len(names)} participants cannot be held out: nobody would be left")
    units, unit_of = _units(owners, names, groups)
    while not wanted:
        yield set()
    if len(units) < 2:
        raise DataError(f"nothing can be held out: all participants are in the group {units[0]!r}")
    shares = [wanted, len(names) - wanted]
    features = _features(names, strata, unit_of, len(units), min(shares))
    assignment = StratifiedAssignment(features, shares, exact=groups is None)
    attempt = 0
    while True:
        part_of = assignment.draw(_generator(seed, _HOLD_OUT, attempt))
        yield {name for name, unit in zip(names, unit_of, strict=True) if part_of[unit] == 0}
        attempt += 1


def leave_one_out(owners: Sequence[str], groups: Sequence[str]) -> dict[str, str]:
    """The group of each participant, for leaving one group out at a time; refuses a single group."""
    names = first_rows(owners)
    units, unit_of = _units(owners, names, groups)
    if len(units) < 2:
        raise DataError(f"leaving one group out needs two groups at least; there is {', '.join(units) or 'none'}")
    return {name: units[unit] for name, unit in zip(names, unit_of, strict=True)}


def is_continuous(values: Sequence[Any]) -> bool:
    """Whether a column is cut into quantiles to be balanced; if not, each of its values is a stratum.

    Continuous: numbers, of which there are more than 20, or more than 5 with fewer than 10 participants each.
    """
    present = [value for value in values if not _is_missing(value)]
    if not present or not all(_is_number(value) for value in present):
        return False
    distinct = len(set(map(float, present)))
    return distinct > 20 or (distinct > 5 and len(present) < 10 * distinct)


def natural_key(text: str) -> tuple[tuple[int, float, str], ...]:
    """Sorts texts by the numbers in them: ses-M6 before ses-M12, whether padded with zeros or not."""
    parts = re.split(r"((?<![\d.])\d+\.\d+(?![\d.])|\d+)", text)
    return tuple((0, float(part), "") if i % 2 else (1, 0.0, part.lower()) for i, part in enumerate(parts) if part)


def first_rows(owners: Sequence[str]) -> dict[str, int]:
    """Each participant's first row, participants in alphabetical order: the order of rows does not matter."""
    found: dict[str, int] = {}
    for row, owner in enumerate(owners):
        found.setdefault(str(owner), row)
    return dict(sorted(found.items()))


def _generator(seed: int, use: int, attempt: int) -> np.random.Generator:
    return np.random.default_rng(derive(seed, SPLIT, use, attempt))


def _units(
    owners: Sequence[str], names: dict[str, int], groups: Sequence[str] | None
) -> tuple[list[str], np.ndarray[Any, Any]]:
    """What is dealt as a whole: participants or groups; and the unit of each participant."""
    if groups is None:
        return list(names), np.arange(len(names))
    group_of: dict[str, str] = {}
    torn: dict[str, str] = {}
    for owner, group in zip(map(str, owners), map(str, groups), strict=True):
        if group_of.setdefault(owner, group) != group:
            torn[owner] = f"{owner!r} is in {group_of[owner]!r} and in {group!r}"
    if torn:
        problems = [torn[owner] for owner in sorted(torn)]
        raise DataError(
            f"a participant must be in one group, or that group cannot stay together:\n{first_lines(problems)}"
        )
    units = sorted(set(group_of.values()), key=lambda name: (natural_key(name), name))
    number = {name: i for i, name in enumerate(units)}
    return units, np.array([number[group_of[name]] for name in names], dtype=np.int64)


def _features(
    names: dict[str, int], strata: Strata | None, unit_of: np.ndarray[Any, Any], units: int, smallest: int
) -> Any:
    """Participants per unit (first column) and per unit and stratum: sparse, units x (1 + strata), int64."""
    from scipy.sparse import csr_matrix

    codes = [np.zeros(len(names), dtype=np.int64)]
    for column in _columns(names, strata):
        codes.append(_strata(column, min(max(smallest, 2), MOST_BINS)) + codes[-1].max(initial=0) + 1)
    rows = np.tile(unit_of, len(codes))
    columns = np.concatenate(codes)
    shape = (units, int(columns.max(initial=0)) + 1)
    counts = csr_matrix((np.ones(len(rows), dtype=np.int64), (rows, columns)), shape=shape)
    counts.sum_duplicates()
    counts.sort_indices()
    return counts


def _columns(names: dict[str, int], strata: Strata | None) -> list[list[Any]]:
    """Each participant's values, column by column."""
    if strata is None:
        return []
    values = [strata[row] for row in names.values()]
    if not any(isinstance(value, tuple) for value in values):
        return [values]
    widths = {len(value) if isinstance(value, tuple) else -1 for value in values}
    if len(widths) > 1:
        raise DataError("strata: give every sample a tuple of the same length, or none of them a tuple")
    return [list(column) for column in zip(*values, strict=True)]


def _strata(values: list[Any], bins: int) -> np.ndarray[Any, Any]:
    """The stratum of each value, counted from 0; what is missing is a stratum of its own."""
    if is_continuous(values):
        present = sorted(float(value) for value in values if not _is_missing(value))
        numbers, counts = np.unique(present, return_counts=True)
        # Equal numbers stay together, in the quantile of their middle.
        middles = (2 * np.cumsum(counts) - counts) * bins // (2 * len(present))
        bin_of = dict(zip(numbers.tolist(), middles.tolist(), strict=True))
        keys = [-1 if _is_missing(value) else bin_of[float(value)] for value in values]
    else:
        keys = ["" if _is_missing(value) else f"={value}" for value in values]
    number = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _is_missing(value: Any) -> bool:
    # pandas' missing values are not equal to themselves, or not comparable at all.
    return value is None or (_is_number(value) and math.isnan(value)) or type(value).__name__ in ("NAType", "NaTType")


class StratifiedAssignment:
    """Assigns units to parts by cells: units with equal counts in every stratum form a cell."""

    def __init__(self, features: Any, shares: Sequence[int], exact: bool) -> None:
        cells: dict[tuple[bytes, bytes], int] = {}
        self.cell_of = np.empty(features.shape[0], dtype=np.int64)
        firsts: list[int] = []
        starts, indices, data = features.indptr.tolist(), features.indices, features.data
        for unit in range(features.shape[0]):
            row = slice(starts[unit], starts[unit + 1])
            cell = cells.setdefault((indices[row].tobytes(), data[row].tobytes()), len(cells))
            self.cell_of[unit] = cell
            if cell == len(firsts):
                firsts.append(unit)
        self.features = features[firsts]
        self.exact = exact
        # In units of 1/whole participants: the exact share of part p is shares[p] / whole.
        self.shares, self.whole = np.array(shares, dtype=np.int64), sum(shares)
        counts = np.bincount(self.cell_of, minlength=len(cells))
        self.even = counts[:, None] * self.shares // self.whole
        self.over = counts[:, None] * self.shares % self.whole
        self.rest = counts - self.even.sum(1)

    def draw(self, generator: np.random.Generator) -> np.ndarray[Any, Any]:
        """The part of each unit."""
        extra, excess = self._assign_rest(generator)
        if extra.any():
            self._exchange(extra, excess)
        number = self.even + extra
        self._fill_empty(number)
        # Within a cell, units go to parts at random.
        order = np.lexsort((generator.permutation(len(self.cell_of)), self.cell_of))
        parts = np.empty(len(self.cell_of), dtype=np.int64)
        parts[order] = np.repeat(np.tile(np.arange(len(self.shares)), len(number)), number.ravel())
        return parts

    def _assign_rest(self, generator: np.random.Generator) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Which parts get the units that cells have left over, large units first; and each part's excess by stratum."""
        features, whole = self.features, self.whole
        excess = np.zeros((len(self.shares), features.shape[1]), dtype=np.int64)
        extra = np.zeros_like(self.even)
        chance = generator.random(self.even.shape)
        sizes = np.asarray(features[:, [0]].todense()).ravel()
        order = np.lexsort((generator.permutation(len(sizes)), -sizes))
        starts = features.indptr
        for cell in order[self.rest[order] > 0]:
            row = slice(starts[cell], starts[cell + 1])
            columns, counts = features.indices[row], features.data[row]
            change = -self.over[cell][:, None] * counts
            lack = (excess[:, columns] + change) @ counts
            chosen = np.lexsort((chance[cell], lack))[: self.rest[cell]]
            extra[cell, chosen] = 1
            change[chosen] += whole * counts
            excess[:, columns] += change
        return extra, excess

    def _exchange(self, extra: np.ndarray[Any, Any], excess: np.ndarray[Any, Any]) -> None:
        """Exchange leftovers between two parts, or move one, while the squared excesses become less."""
        weights = np.ones(self.features.shape[1], dtype=np.int64)
        weights[0] = _EXACT if self.exact else 1
        weighted = self.features.multiply(weights).tocsr()
        norms = np.asarray(weighted.multiply(self.features).sum(1)).ravel()
        pairs = list(combinations(range(len(self.shares)), 2))
        for _ in range(_SWEEPS):
            changed = False
            for one, other in pairs:
                while self._exchange_once(extra, excess, one, other, weighted, norms):
                    changed = True
            if not changed:
                return

    def _exchange_once(
        self, extra: np.ndarray[Any, Any], excess: np.ndarray[Any, Any], one: int, other: int, weighted: Any, norms: Any
    ) -> bool:
        pull = weighted @ (excess[one] - excess[other])
        gone = np.flatnonzero((extra[:, one] == 1) & (extra[:, other] == 0))
        come = np.flatnonzero((extra[:, other] == 1) & (extra[:, one] == 0))
        # Half the change of the squares, over `whole`, when a cell's unit leaves `one` or comes to it.
        leave = -pull[gone] + self.whole * norms[gone]
        enter = pull[come] + self.whole * norms[come]
        gone, leave = _most_promising(gone, leave)
        come, enter = _most_promising(come, enter)
        common = np.asarray((weighted[gone] @ self.features[come].T).todense()).reshape(len(gone), len(come))
        change = np.zeros((len(gone) + 1, len(come) + 1), dtype=np.int64)
        change[:-1, :-1] = leave[:, None] + enter[None] - 2 * self.whole * common
        change[:-1, -1], change[-1, :-1] = leave, enter
        best = int(change.argmin())
        first, second = divmod(best, len(come) + 1)
        if change[first, second] >= 0:
            return False
        for moved, source, target in ((gone[first : first + 1], one, other), (come[second : second + 1], other, one)):
            for cell in moved:
                extra[cell, source], extra[cell, target] = 0, 1
                row = slice(self.features.indptr[cell], self.features.indptr[cell + 1])
                counts = self.whole * self.features.data[row]
                excess[source, self.features.indices[row]] -= counts
                excess[target, self.features.indices[row]] += counts
        return True

    def _fill_empty(self, number: np.ndarray[Any, Any]) -> None:
        """Groups may be so uneven that a part has none: it gets the group with the best fitting size."""
        sizes = np.asarray(self.features[:, [0]].todense()).ravel()
        total = int((number.sum(1) * sizes).sum())
        for part in np.flatnonzero((number.sum(0) == 0) & (self.shares > 0)):
            giving = number * (number.sum(0) > 1)
            fits = np.abs(sizes * self.whole - self.shares[part] * total)[:, None] + np.zeros_like(number)
            cell, source = divmod(int(np.where(giving > 0, fits, np.iinfo(np.int64).max).argmin()), number.shape[1])
            number[cell, source] -= 1
            number[cell, part] += 1


def _most_promising(cells: np.ndarray[Any, Any], change: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    kept = np.argsort(change, kind="stable")[:_CANDIDATES]
    return cells[kept], change[kept]
