"""One train / validation / test partition: whole participants, no leak, no empty group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Subset

from medtrain import determinism
from medtrain.data.contract import GROUPS, Data, Dataset, classes_of, participants_of, sample_ids_of
from medtrain.errors import DataError, first_lines


class Part(Subset[Any]):
    """Some samples of a dataset, with its names, participants and strata."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        super().__init__(dataset, indices)
        self.sample_ids = [sample_ids_of(dataset)[i] for i in indices]
        self.deterministic = bool(getattr(dataset, "deterministic", False))
        participants = participants_of(dataset)
        self.participants = None if participants is None else [participants[i] for i in indices]
        classes = classes_of(dataset)
        self.classes = None if classes is None else [classes[i] for i in indices]


class Joined(ConcatDataset[Any]):
    """Several datasets as one, with their names and participants."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        super().__init__(datasets)
        self.sample_ids = [str(sample) for dataset in datasets for sample in sample_ids_of(dataset)]
        self.deterministic = all(getattr(dataset, "deterministic", False) for dataset in datasets)
        owners = [participants_of(dataset) for dataset in datasets]
        known = all(part is not None for part in owners)
        self.participants = [owner for part in owners for owner in part or ()] if known else None


@dataclass
class Split:
    """The groups of one fold. `about` holds facts the data's plugin wants recorded."""

    groups: dict[str, Dataset]
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def as_data(self) -> Data:
        """The groups as plugins gave or would have given them."""
        groups = self.groups
        return Data(
            groups.get("train"), groups.get("validation"), groups.get("test"), groups.get("whole"), about=self.about
        )

    def membership(self) -> dict[str, Any]:
        """Who is in which group, as it is recorded and compared on resume."""
        return {
            name: {
                "samples": list(map(str, sample_ids_of(dataset))),
                "participants": sorted(set(map(str, participants_of(dataset) or []))),
            }
            for name, dataset in self.groups.items()
        }

    def digest(self) -> str:
        """SHA-256 of the membership."""
        text = json.dumps(self.membership(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def make_split(data: Data, seed: int, validation_fraction: float = 0.2, test_fraction: float = 0.1) -> Split:
    """The split a plugin's data ask for; raises DataError on leaks, empty groups and repeated sample ids."""
    groups = data.groups()
    if data.whole is not None:
        if groups:
            raise DataError("build_data gave both groups and a whole dataset; give one or the other")
        groups = _partition(data.whole, seed, {"validation": validation_fraction, "test": test_fraction})
    if "train" not in groups:
        raise DataError("there is no train group: build_data gave none")
    for name, dataset in groups.items():
        if len(dataset) == 0:
            raise DataError(f"group {name!r} is empty: no sample is left in it")
    _refuse_repeats(groups)
    _refuse_leaks(groups)
    return Split(groups, data.collate, data.about)


def _partition(dataset: Any, seed: int, fractions: dict[str, float]) -> dict[str, Dataset]:
    """Participants dealt into groups at random, stratum by stratum (a participant's stratum: her first sample's)."""
    owners = list(participants_of(dataset) or sample_ids_of(dataset))
    strata = getattr(dataset, "strata", None)
    stratum_of: dict[str, str] = {}
    for index, owner in enumerate(owners):
        stratum_of.setdefault(owner, "" if strata is None else str(strata[index]))
    generator = np.random.default_rng(determinism.derive(seed, determinism.SPLIT))
    group_of: dict[str, str] = {}
    carried = dict.fromkeys(fractions, 0.0)
    for stratum in sorted(set(stratum_of.values())):
        members = sorted(owner for owner, value in stratum_of.items() if value == stratum)
        dealt = [members[i] for i in generator.permutation(len(members))]
        for name, fraction in fractions.items():
            # What rounding withholds from one stratum is carried into the next, so that the totals are right.
            wanted = fraction * len(members) + carried[name]
            count = min(round(wanted), len(dealt))
            carried[name] = wanted - count
            for owner in dealt[:count]:
                group_of[owner] = name
            dealt = dealt[count:]
    members_of: dict[str, list[int]] = {name: [] for name in GROUPS if name == "train" or fractions.get(name)}
    for index, owner in enumerate(owners):
        members_of[group_of.get(owner, "train")].append(index)
    return {name: Part(dataset, indices) for name, indices in members_of.items()}


def _refuse_repeats(groups: dict[str, Dataset]) -> None:
    seen: dict[str, str] = {}
    problems = []
    for name, dataset in groups.items():
        for sample in map(str, sample_ids_of(dataset)):
            if sample in seen:
                problems.append(f"{sample!r} in {seen[sample]} and {name}")
            seen[sample] = name
    if problems:
        raise DataError(f"sample ids must be unique; repeated:\n{first_lines(problems)}")


def _refuse_leaks(groups: dict[str, Dataset]) -> None:
    owner_group: dict[str, str] = {}
    leaks: dict[str, str] = {}
    for name, dataset in groups.items():
        for owner in set(map(str, participants_of(dataset) or [])):
            if owner in owner_group:
                leaks[owner] = f"{owner!r} is in {owner_group[owner]} and in {name}"
            owner_group[owner] = name
    if leaks:
        problems = [leaks[owner] for owner in sorted(leaks)]
        raise DataError(f"a participant may be in one group only; leaked:\n{first_lines(problems)}")
