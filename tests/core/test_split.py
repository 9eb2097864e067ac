"""Splits: participants stay whole, strata are balanced, and what would give wrong numbers is refused."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from medtrain.data import Data, participants_of, sample_ids_of, split_groups
from medtrain.errors import DataError
from toy_plugin import Vectors


class Cohort:
    """Three samples per participant, every fourth participant a case."""

    deterministic = True

    def __init__(self, people: int, strata: bool = True) -> None:
        self.participants = [f"p{i // 3}" for i in range(people * 3)]
        self.sample_ids = [f"s{i}" for i in range(people * 3)]
        if strata:
            self.strata = [i // 3 % 4 == 0 for i in range(people * 3)]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"sample_id": self.sample_ids[index]}


def people(dataset: Any) -> set[str]:
    return set(participants_of(dataset) or [])


def test_participants_stay_whole_and_fractions_hold() -> None:
    split = split_groups(Data(whole=Cohort(40)), 0, 0.25, 0.1)
    groups = {name: people(group) for name, group in split.groups.items()}
    assert {name: len(members) for name, members in groups.items()} == {"train": 26, "validation": 10, "test": 4}
    assert len(set().union(*groups.values())) == 40
    assert all(len(group) == 3 * len(people(group)) for group in split.groups.values())
    assert all(group.deterministic for group in split.groups.values())
    for group in split.groups.values():
        assert [group[i]["sample_id"] for i in range(len(group))] == list(sample_ids_of(group))


class Augmenting(Cohort):
    """The same, augmented unless it is for evaluation."""

    deterministic = False

    def evaluation(self) -> Cohort:
        return Cohort(len(self) // 3)


def test_only_the_training_group_is_augmented() -> None:
    for folds in (0, 3):
        split = split_groups(Data(whole=Augmenting(40)), 0, 0.25, 0.1, folds)
        kinds = {name: type(group.dataset) for name, group in split.groups.items()}  # type: ignore[attr-defined]
        assert kinds == {"train": Augmenting, "validation": Cohort, "test": Cohort}
        assert split.membership() == split_groups(Data(whole=Cohort(40)), 0, 0.25, 0.1, folds).membership()


def test_strata_are_balanced() -> None:
    split = split_groups(Data(whole=Cohort(80)), 1, 0.25, 0.1)
    for group in split.groups.values():
        cases = Counter(int(name[1:]) % 4 == 0 for name in people(group))
        assert cases[True] / len(people(group)) == pytest.approx(0.25, abs=0.06)


def test_small_strata_are_not_starved() -> None:
    """Ten strata of two people: each alone would round its tenth of a test group to nobody."""
    cohort = Cohort(20, strata=False)
    cohort.strata = [i // 6 for i in range(60)]  # type: ignore[assignment]
    split = split_groups(Data(whole=cohort), 0, 0.2, 0.1)
    assert {name: len(people(group)) for name, group in split.groups.items()} == {
        "train": 14,
        "validation": 4,
        "test": 2,
    }


def test_the_seed_decides() -> None:
    data = Data(whole=Cohort(40))
    assert split_groups(data, 3).membership() == split_groups(data, 3).membership()
    assert split_groups(data, 3).digest() == split_groups(data, 3).digest()
    assert split_groups(data, 3).digest() != split_groups(data, 4).digest()


def test_no_test_group_when_none_is_wanted() -> None:
    assert set(split_groups(Data(whole=Cohort(10)), 0, 0.2, 0.0).groups) == {"train", "validation"}


def test_samples_without_participants_are_dealt_one_by_one() -> None:
    class Bare:
        def __len__(self) -> int:
            return 10

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"sample_id": str(index)}

    split = split_groups(Data(whole=Bare()), 0)
    assert {name: len(group) for name, group in split.groups.items()} == {"train": 7, "validation": 2, "test": 1}
    membership = split.membership()
    assert sorted(int(s) for group in membership.values() for s in group["samples"]) == list(range(10))
    assert membership["train"]["participants"] == []


def test_given_groups_are_taken_as_they_are() -> None:
    data = Data(train=Vectors(0, 4), test=Vectors(10, 3), about={"source": "here"})
    split = split_groups(data, 0)
    assert split.groups == {"train": data.train, "test": data.test}
    assert split.as_data() == data
    assert split.membership()["test"]["samples"] == ["sample-010", "sample-011", "sample-012"]


def test_a_participant_in_two_groups_is_refused() -> None:
    first, second = Vectors(0, 4), Vectors(10, 4)
    second.participants[2] = "sub-003"
    with pytest.raises(DataError, match=r"leaked:\n  - 'sub-003' is in train and in validation$"):
        split_groups(Data(train=first, validation=second), 0)


def test_a_repeated_sample_is_refused() -> None:
    first, second = Vectors(0, 4), Vectors(10, 4)
    second.sample_ids[0] = "sample-001"
    with pytest.raises(DataError, match=r"must be unique; repeated:\n  - 'sample-001' in train and test"):
        split_groups(Data(train=first, test=second), 0)


def test_a_sample_twice_in_one_group_is_refused() -> None:
    group = Vectors(0, 4)
    group.sample_ids[1] = "sample-000"
    with pytest.raises(DataError, match="'sample-000' in train and train"):
        split_groups(Data(train=group), 0)


@pytest.mark.parametrize("count", [0, 1])
def test_an_empty_group_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=r"group '.*' is empty"):
        split_groups(Data(whole=Cohort(count)), 0)


def test_an_empty_given_group_is_refused() -> None:
    with pytest.raises(DataError, match="group 'validation' is empty"):
        split_groups(Data(train=Vectors(0, 4), validation=Vectors(5, 0)), 0)


def test_no_train_group() -> None:
    with pytest.raises(DataError, match="there is no train group"):
        split_groups(Data(test=Vectors(0, 4)), 0)


def test_groups_and_a_whole_dataset() -> None:
    with pytest.raises(DataError, match="give one or the other"):
        split_groups(Data(train=Vectors(0, 4), whole=Vectors(5, 4)), 0)
