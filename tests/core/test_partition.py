"""Dealing participants: nobody on two sides, sizes and strata even, the same for the same seed whatever the order."""

from __future__ import annotations

import time
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from medtrain.errors import DataError, UsageError
from medtrain_plugins.standard.splits.partition import (
    assign_folds,
    hold_out,
    hold_outs,
    is_continuous,
    leave_one_out,
    natural_key,
)


def cohort(seed: int) -> tuple[list[str], list[tuple[str, str]], int]:
    """Random participants with two categories each, and a number of folds."""
    generator = np.random.default_rng(seed)
    people = int(generator.integers(8, 120))
    levels = generator.integers(2, 5, size=2)
    strata = [tuple(f"{generator.integers(n)}" for n in levels) for _ in range(people)]
    return [f"sub-{i:03d}" for i in range(people)], strata, int(generator.integers(2, 7))  # type: ignore[return-value]


def spread(fold_of: dict[str, int], owners: list[str], values: list[Any], k: int) -> int:
    """The largest difference between two folds in any value's count."""
    counts = Counter((value, fold_of[owner]) for owner, value in zip(owners, values, strict=True))
    per_value = [[counts[value, fold] for fold in range(k)] for value in set(values)]
    return max(max(row) - min(row) for row in per_value)


@pytest.mark.parametrize("seed", range(40))
def test_folds_of_random_cohorts(seed: int) -> None:
    owners, strata, k = cohort(seed)
    fold_of = assign_folds(owners, strata, k, seed)
    assert set(fold_of) == set(owners)
    sizes = Counter(fold_of.values())
    assert set(sizes) == set(range(k))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    # One participant more or less in each stratum of each column, and in each combination of strata.
    for column in range(2):
        assert spread(fold_of, owners, [value[column] for value in strata], k) <= 1
    assert spread(fold_of, owners, strata, k) <= 1


@pytest.mark.parametrize("seed", range(40))
def test_held_out_of_random_cohorts(seed: int) -> None:
    owners, strata, k = cohort(seed)
    wanted = max(len(owners) // (k + 1), 1)
    held_out = hold_out(owners, strata, wanted, seed)
    assert held_out < set(owners)
    assert len(held_out) == wanted
    for column in range(2):
        of = {owner: value[column] for owner, value in zip(owners, strata, strict=True)}
        all_of, held = Counter(of.values()), Counter(of[owner] for owner in held_out)
        assert all(abs(held[value] - n * wanted / len(owners)) <= 1 for value, n in all_of.items())


def test_many_columns_of_a_small_cohort() -> None:
    """Five columns, forty participants: hardly two are alike, and every column is balanced all the same."""
    generator = np.random.default_rng(0)
    owners = [f"sub-{i}" for i in range(40)]
    strata = [tuple(generator.integers(2, size=5).tolist()) for _ in owners]
    for seed in range(10):
        fold_of = assign_folds(owners, strata, 5, seed)
        assert max(spread(fold_of, owners, [value[c] for value in strata], 5) for c in range(5)) <= 2


def test_continuous_columns_are_balanced_by_quantile() -> None:
    generator = np.random.default_rng(0)
    owners = [f"sub-{i}" for i in range(100)]
    ages = generator.normal(70, 10, size=100).tolist()
    quarter = np.digitize(ages, np.quantile(ages, [0.25, 0.5, 0.75])).tolist()
    fold_of = assign_folds(owners, ages, 5, 0)
    assert spread(fold_of, owners, quarter, 5) <= 2
    means = [np.mean([age for owner, age in zip(owners, ages, strict=True) if fold_of[owner] == f]) for f in range(5)]
    assert np.ptp(means) < 3
    plain = assign_folds(owners, None, 5, 0)
    assert spread(plain, owners, quarter, 5) > 2


@pytest.mark.parametrize("groups", [False, True])
def test_the_seed_decides_and_the_order_does_not(groups: bool) -> None:
    generator = np.random.default_rng(1)
    owners = [f"sub-{i // 2}" for i in range(120)]
    strata: list[Any] = [(f"{i // 2 % 3}", float(i // 2 % 37)) for i in range(120)]
    families = [f"fam-{i // 6}" for i in range(120)] if groups else None
    order = generator.permutation(120)

    def shuffled(values: list[Any] | None) -> list[Any] | None:
        return None if values is None else [values[i] for i in order]

    again = (shuffled(owners), shuffled(strata))
    first = assign_folds(owners, strata, 4, 7, families)
    assert assign_folds(*again, 4, 7, shuffled(families)) == first  # type: ignore[arg-type]
    assert hold_out(*again, 12, 7, shuffled(families)) == hold_out(owners, strata, 12, 7, families)  # type: ignore[arg-type]
    assert assign_folds(owners, strata, 4, 8, families) != first
    assert assign_folds(owners, strata, 4, 7, families, repeat=1) != first


def test_everyone_is_as_likely_to_be_held_out() -> None:
    owners = [f"sub-{i}" for i in range(20)]
    strata = [i % 2 for i in range(20)]
    counts = Counter(owner for held in islice(hold_outs(owners, strata, 5, 0), 400) for owner in held)
    assert len(counts) == 20
    # 100 expected, SD 9.
    assert min(counts.values()) > 60
    assert max(counts.values()) < 140


def test_groups_stay_together() -> None:
    generator = np.random.default_rng(0)
    families = [f"fam-{i}" for i in range(60) for _ in range(generator.integers(1, 5))]
    owners = [f"sub-{i}" for i in range(len(families))]
    sexes = generator.choice(["F", "M"], size=len(owners)).tolist()
    fold_of = assign_folds(owners, sexes, 5, 0, families)
    assert (
        max(len({fold_of[o] for o, f in zip(owners, families, strict=True) if f == family}) for family in families) == 1
    )
    sizes = Counter(fold_of.values())
    assert max(sizes.values()) - min(sizes.values()) <= 2
    assert spread(fold_of, owners, sexes, 5) <= 2
    held_out = hold_out(owners, sexes, 30, 0, families)
    assert abs(len(held_out) - 30) <= 1
    outside = {family for owner, family in zip(owners, families, strict=True) if owner not in held_out}
    assert not outside & {family for owner, family in zip(owners, families, strict=True) if owner in held_out}


def test_no_fold_is_empty_however_uneven_the_groups() -> None:
    sites = ["A"] * 50 + ["B", "C", "D"]
    owners = [f"sub-{i}" for i in range(53)]
    for seed in range(5):
        assert set(assign_folds(owners, None, 4, seed, sites).values()) == {0, 1, 2, 3}
        held_out = hold_out(owners, None, 1, seed, sites)
        assert len(held_out) == 1
    halves = ["A"] * 10 + ["B"] * 10
    assert len(hold_out(owners[:20], None, 4, 0, halves)) == 10


def test_leave_one_out_names_each_group() -> None:
    assert leave_one_out(["a", "b", "a", "c"], ["X", "Y", "X", "X"]) == {"a": "X", "b": "Y", "c": "X"}
    with pytest.raises(DataError, match="two groups at least; there is X"):
        leave_one_out(["a", "b"], ["X", "X"])


def test_a_participant_in_two_groups_is_refused() -> None:
    with pytest.raises(DataError, match=r"in one group.*\n  - 'a' is in 'X' and in 'Y'"):
        assign_folds(["a", "b", "a"], None, 2, 0, ["X", "Y", "Y"])


def test_more_folds_than_participants() -> None:
    with pytest.raises(DataError, match="5 folds cannot be made of 3 participants; ask for at most 3"):
        assign_folds(["a", "b", "c", "c"], None, 5, 0)
    with pytest.raises(DataError, match="3 folds cannot be made of 2 groups"):
        assign_folds(["a", "b", "c"], None, 3, 0, ["X", "X", "Y"])
    with pytest.raises(UsageError, match="at least 2"):
        assign_folds(["a", "b"], None, 1, 0)


def test_somebody_must_be_left() -> None:
    with pytest.raises(DataError, match="3 of 3 participants cannot be held out"):
        hold_out(["a", "b", "c"], None, 3, 0)
    with pytest.raises(DataError, match="all participants are in the group 'X'"):
        hold_out(["a", "b", "c"], None, 1, 0, ["X", "X", "X"])
    assert hold_out(["a", "b"], None, 0, 0) == set()


def test_missing_values_are_a_stratum() -> None:
    owners = [f"sub-{i}" for i in range(40)]
    ages: list[Any] = [None if i % 4 == 0 else float("nan") if i % 4 == 1 else 50.0 + i for i in range(40)]
    fold_of = assign_folds(owners, ages, 5, 0)
    assert spread(fold_of, owners, [i % 4 < 2 for i in range(40)], 5) == 0


@pytest.mark.parametrize(
    ("values", "continuous"),
    [
        ([50.0 + i for i in range(20)], True),
        (list(range(25)) * 100, True),
        ([i % 6 for i in range(300)], False),
        ([0, 1] * 10, False),
        ([True, False] * 10, False),
        (["1", "2"] * 10, False),
        ([None, float("nan")], False),
    ],
)
def test_what_counts_as_continuous(values: list[Any], continuous: bool) -> None:
    assert is_continuous(values) is continuous


def test_strata_of_different_width_are_refused() -> None:
    with pytest.raises(DataError, match="a tuple of the same length"):
        assign_folds(["a", "b"], [(1, 2), 3], 2, 0)


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["ses-M12", "ses-M6", "ses-M006b", "ses-M1.5", "ses-M1.25"]
    assert sorted(names, key=natural_key) == ["ses-M1.25", "ses-M1.5", "ses-M6", "ses-M006b", "ses-M12"]


def test_twenty_thousand_participants() -> None:
    generator = np.random.default_rng(0)
    owners = [f"sub-{i:05d}" for i in range(20_000)]
    strata = list(
        zip(
            generator.normal(size=20_000).tolist(),
            generator.choice(["F", "M"], size=20_000).tolist(),
            generator.integers(12, size=20_000).tolist(),
            strict=True,
        )
    )
    start = time.process_time()
    fold_of = assign_folds(owners, strata, 5, 0)
    assert time.process_time() - start < 5
    assert spread(fold_of, owners, [value[1] for value in strata], 5) <= 1
    assert spread(fold_of, owners, [value[2] for value in strata], 5) <= 1
