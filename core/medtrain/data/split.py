"""One train / validation / test partition: whole participants, no leak, no empty group."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Subset

from medtrain import determinism
from medtrain.data.adapt import Weighted, adopt, named
from medtrain.data.contract import GROUPS, Data, Dataset, evaluation_of, participants_of, sample_ids_of
from medtrain.data.loader import Loader
from medtrain.data.partition import deal_folds, hold_out
from medtrain.errors import DataError, first_lines

_EVALUATION = ("batch_size", "num_workers", "collate_fn")


class Part(Subset[Any]):
    """Some samples of a dataset, with what it tells of them."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        super().__init__(dataset, indices)
        self.sample_ids = [sample_ids_of(dataset)[i] for i in indices]
        self.deterministic = bool(getattr(dataset, "deterministic", False))
        for name in ("participants", "sessions", "strata", "classes", "weights"):
            told = getattr(dataset, name, None)
            setattr(self, name, None if told is None else [told[i] for i in indices])


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
    """The groups of one fold.

    about: facts the data's plugin wants recorded. index: which fold, and the number of its folder in the run
    directory. feeding: values of the section `data` that `build_train_loader` and `build_val_loader` settled.
    """

    groups: dict[str, Dataset]
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    feeding: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, train: Any, validation: Any = None, test: Any = None, index: int = 0) -> Split:
        """From datasets, or from ready-made DataLoaders, whose settings are taken over.

        Datasets of tuples are fine: their parts are called `image` and `label`.
        """
        split = cls({}, index=index)
        for group, given in (("train", train), ("validation", validation), ("test", test)):
            if given is None:
                continue
            dataset, settings = adopt(given) if isinstance(given, DataLoader) else (given, None)
            split.groups[group] = named(dataset, group)
            if settings is not None and group == "train":
                split.build_train_loader(**settings)
            elif settings is not None and group == "validation":
                split.build_val_loader(**{key: settings[key] for key in _EVALUATION if key in settings})
        return split

    @property
    def train_dataset(self) -> Dataset:
        return self.groups["train"]

    @property
    def val_dataset(self) -> Dataset | None:
        return self.groups.get("validation")

    def build_train_loader(
        self,
        batch_size: int = 1,
        shuffle: bool = True,
        sampling_weights: Sequence[float] | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        drop_last: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
        collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    ) -> Loader:
        """Settle how training samples are fed, instead of the configuration's section `data`.

        sampling_weights: draw with replacement, each sample by its weight. The answer is for looking at batches; the
        Trainer draws by its own seed.
        """
        self.collate = collate_fn or self.collate
        if sampling_weights is not None:
            self.groups["train"] = Weighted(self.groups["train"], sampling_weights)
        self.feeding |= {
            "batch_size": batch_size,
            "sampling": "weighted" if sampling_weights is not None else "shuffle" if shuffle else "sequential",
            "num_workers": num_workers,
            "pin_memory": pin_memory,
            "drop_last": drop_last,
            "prefetch_factor": prefetch_factor,
            "persistent_workers": persistent_workers,
        }
        weights = getattr(self.groups["train"], "weights", None) if sampling_weights is not None else None
        return Loader(
            self.groups["train"],
            batch_size,
            shuffle=shuffle,
            weights=weights,
            drop_last=drop_last,
            collate_fn=self.collate,
            num_workers=num_workers,
            pin_memory=bool(pin_memory),
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
        )

    def build_val_loader(
        self,
        batch_size: int = 1,
        num_workers: int = 0,
        collate_fn: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    ) -> Loader:
        """Settle how samples are fed outside training; the answer is for looking at batches."""
        if "validation" not in self.groups:
            raise DataError("this split has no validation group")
        self.collate = collate_fn or self.collate
        self.feeding |= {"evaluation_batch_size": batch_size, "evaluation_num_workers": num_workers}
        return Loader(self.groups["validation"], batch_size, collate_fn=self.collate, num_workers=num_workers)

    def checked(self) -> Split:
        """Itself; raises DataError on leaks, empty groups and repeated sample ids."""
        if "train" not in self.groups:
            raise DataError("there is no train group: the data have none")
        for name, dataset in self.groups.items():
            if len(dataset) == 0:
                raise DataError(f"group {name!r} is empty: no sample is left in it")
        _refuse_repeats(self.groups)
        _refuse_leaks(self.groups)
        return self

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


def split_groups(
    data: Data,
    seed: int,
    validation_fraction: float = 0.2,
    test_fraction: float = 0.1,
    num_folds: int = 0,
    splits: Path | None = None,
    index: int = 0,
) -> Split:
    """The split a plugin's data ask for; raises DataError on leaks, empty groups and repeated sample ids.

    A whole dataset is split by participant: by the tables of the folder `splits`, into `num_folds` folds of which
    number `index` validates (the test group is held out of all of them), or by fractions.
    """
    groups = data.groups()
    if data.whole is None:
        if num_folds or splits or index:
            raise DataError("data.num_folds, data.splits: these data come in groups already; there is one split, 0")
    elif groups:
        raise DataError("build_data gave both groups and a whole dataset; give one or the other")
    elif splits is not None:
        groups = _by_tables(data.whole, splits, index)
    else:
        if index not in range(max(1, num_folds)):
            raise DataError(f"there is no split {index}: data.num_folds = {num_folds}")
        fractions = {"test": test_fraction} if num_folds else {"validation": validation_fraction, "test": test_fraction}
        groups = _partition(data.whole, seed, fractions, num_folds, index)
    return Split(groups, data.collate, data.about, index).checked()


def count_splits(num_folds: int, splits: Path | None) -> int:
    """How many splits a run has by its configuration."""
    if splits is not None:
        from medtrain.data.splitters import open_splits

        return len(open_splits(splits))
    return max(1, num_folds)


def _by_tables(dataset: Any, folder: Path, index: int) -> dict[str, Dataset]:
    """The groups that the tables of a folder name."""
    from medtrain.data.splitters import open_splits

    found = open_splits(folder)
    if index not in range(len(found)):
        raise DataError(f"{folder}: there is no split {index}; it holds {len(found)}")
    return found.groups(dataset, index)


def _partition(
    dataset: Any, seed: int, fractions: dict[str, float], num_folds: int = 0, index: int = 0
) -> dict[str, Dataset]:
    """Participants dealt into groups, strata balanced (a participant's stratum: her first sample's)."""
    owners = list(map(str, participants_of(dataset) or sample_ids_of(dataset)))
    strata = getattr(dataset, "strata", None)
    everyone = len(set(owners))
    group_of: dict[str, str] = {}
    rows = list(range(len(owners)))
    for number, (name, fraction) in enumerate(fractions.items()):
        values = None if strata is None else [strata[row] for row in rows]
        stream = determinism.derive(seed, determinism.SPLIT, number)
        held_out = hold_out([owners[row] for row in rows], values, round(fraction * everyone), stream)
        group_of |= dict.fromkeys(held_out, name)
        rows = [row for row in rows if owners[row] not in held_out]
    if num_folds:
        values = None if strata is None else [strata[row] for row in rows]
        folds = deal_folds(
            [owners[row] for row in rows], values, num_folds, determinism.derive(seed, determinism.SPLIT)
        )
        group_of |= {owner: "validation" for owner, fold in folds.items() if fold == index}
    used = {"train", *group_of.values()}
    members_of: dict[str, list[int]] = {name: [] for name in GROUPS if name in used or fractions.get(name)}
    for place, owner in enumerate(owners):
        members_of[group_of.get(owner, "train")].append(place)
    plain = evaluation_of(dataset)
    return {name: Part(dataset if name == "train" else plain, indices) for name, indices in members_of.items()}


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
