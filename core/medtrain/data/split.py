"""One train / validation / test partition: whole participants, no leak, no empty group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Subset

from medtrain.data.adapters import Weighted, from_dataloader, named
from medtrain.data.loader import Loader
from medtrain.errors import DataError, first_lines
from medtrain.protocols.dataset import Data, Dataset, participants_of, sample_ids_of
from medtrain.rundir.files import sha256_of

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
    directory. feeding: values of the section `data` that `build_train_loader` and `build_val_loader` settled. count:
    how many splits the data make.
    """

    groups: dict[str, Dataset]
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    index: int = 0
    feeding: dict[str, Any] = field(default_factory=dict)
    count: int = 1

    @classmethod
    def of(cls, train: Any, validation: Any = None, test: Any = None, index: int = 0) -> Split:
        """From datasets, or from ready-made DataLoaders, whose settings are taken over.

        Datasets of tuples are fine: their parts are called `image` and `label`.
        """
        split = cls({}, index=index)
        for group, given in (("train", train), ("validation", validation), ("test", test)):
            if given is None:
                continue
            dataset, settings = from_dataloader(given) if isinstance(given, DataLoader) else (given, None)
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
        return sha256_of(self.membership())


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
