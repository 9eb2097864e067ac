"""`SingleSplit` and `KFold`: folders of tables (of `make_split`, `make_kfold` or ClinicaDL 2.0) as splits.

All tables are read, and participants on two sides refused, before any dataset is looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medtrain.data import Part, Split
from medtrain.errors import DataError, UsageError, first_lines
from medtrain.protocols import Dataset, evaluation_of, participants_of
from medtrain.rundir import read_json

from medtrain_plugins.standard.splits.split_tables import (
    BASELINE,
    FACTS,
    KFOLD_CONFIG,
    PARTICIPANT,
    SESSION,
    SINGLE_CONFIG,
    TRAIN,
    read_sessions,
)

log = logging.getLogger("medtrain")

Pair = tuple[str, str]


@dataclass
class Sides:
    """The (participant, session) pairs of one split: what is trained on, and what is held out."""

    folder: Path
    train: list[Pair]
    held_out: list[Pair]

    @classmethod
    def read(cls, folder: Path, subset: str, longitudinal: bool) -> Sides:
        """From the tables of a folder; refuses participants that any table has on the other side."""
        held_name = f"{subset}.tsv" if longitudinal else f"{subset}{BASELINE}.tsv"
        tables = {name: _pairs(folder / name) for name in (f"{TRAIN}.tsv", held_name)}
        for name in (f"{TRAIN}{BASELINE}.tsv", f"{subset}{BASELINE}.tsv", f"{subset}.tsv"):
            if name not in tables and (folder / name).is_file():
                tables[name] = _pairs(folder / name)
        on_train: dict[str, str] = {}
        leaks: dict[str, str] = {}
        for name, pairs in tables.items():
            if name.startswith(TRAIN):
                on_train |= {person: name for person, _ in pairs}
        for name, pairs in tables.items():
            if not name.startswith(TRAIN):
                leaks |= {p: f"{p!r} in {on_train[p]} and {name}" for p, _ in pairs if p in on_train}
        if leaks:
            raise DataError(
                f"{folder}: participants are on both sides:\n{first_lines([leaks[p] for p in sorted(leaks)])}"
            )
        return cls(folder, tables[f"{TRAIN}.tsv"], tables[held_name])


class SingleSplit:
    """A folder with one held-out set.

    split_dir: what `make_split` returned. Raises UsageError when it is no such folder, and DataError when a table
    cannot be used or a participant is on both sides.
    """

    def __init__(self, split_dir: str | Path) -> None:
        self.split_dir = str(split_dir)
        folder = Path(split_dir)
        config = _config(folder, SINGLE_CONFIG, KFOLD_CONFIG, "KFold")
        self.subset_name = str(config.get("subset_name", "test"))
        self.longitudinal = bool(config.get("longitudinal", False))
        self._sides = Sides.read(folder, self.subset_name, self.longitudinal)

    def get_split(self, dataset: Dataset, eval_dataset: Dataset | None = None) -> Split:
        """The split of a dataset into `train` and `validation` (the held-out side, whatever the folder calls it).

        dataset: tells `participants` and, to be matched session by session, `sessions`. eval_dataset: where the
        held-out samples come from instead, for example whole images beside training patches; default: `evaluation()`
        of the dataset where it offers that, so that nothing held out is augmented, else the dataset itself. Pairs of
        the tables that are not in the data are warned of; raises DataError when a side is left without samples.
        """
        return next(_splits({0: self._sides}, dataset, eval_dataset))

    def __len__(self) -> int:
        return 1

    def groups(self, dataset: Dataset, index: int = 0) -> dict[str, Dataset]:
        """The groups of the one split there is."""
        return self.get_split(dataset).groups


class KFold:
    """A folder with the tables of several folds.

    split_dir: what `make_kfold` returned. Raises UsageError when it is no such folder, and DataError when a table
    cannot be used, a participant is on both sides of a fold or held out twice, or was held out already where the
    folds lie inside a single split's folder.
    """

    def __init__(self, split_dir: str | Path) -> None:
        self.split_dir = str(split_dir)
        folder = Path(split_dir)
        config = _config(folder, KFOLD_CONFIG, SINGLE_CONFIG, "SingleSplit")
        facts = read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
        self.n_splits: int = config.get("n_splits", len(list(folder.glob("split-*"))))
        if not isinstance(self.n_splits, int) or self.n_splits < 1:
            raise UsageError(f"{folder / KFOLD_CONFIG}: n_splits must be the number of folds, not {self.n_splits!r}")
        self.repeats = int(facts.get("repeats", 1))
        self.subset_name = str(config.get("subset_name", "validation"))
        self.longitudinal = bool(config.get("longitudinal", False))
        self._sides = {
            index: Sides.read(folder / f"split-{index}", self.subset_name, self.longitudinal)
            for index in range(self.n_splits)
        }
        self._refuse_second_turns()
        self._tested: list[Pair] = []
        outer = folder.resolve().parent
        if (outer / SINGLE_CONFIG).is_file():
            self._tested = SingleSplit(outer)._sides.held_out
            self._refuse_tested(outer)

    def get_splits(
        self, dataset: Dataset, eval_dataset: Dataset | None = None, splits: Sequence[int] | None = None
    ) -> Iterator[Split]:
        """The splits of a dataset, one by one, with the groups `train` and `validation` and their `index`.

        Where the folds lie inside a single split's folder, its held-out side is the group `test` of each of them.
        dataset, eval_dataset: as in `SingleSplit.get_split`. splits: only these folds; raises UsageError when there is
        no such fold.
        """
        chosen = list(range(self.n_splits)) if splits is None else list(splits)
        if unknown := [index for index in chosen if index not in self._sides]:
            raise UsageError(f"{self.split_dir}: there is no fold {unknown[0]}; there are 0 to {self.n_splits - 1}")
        return _splits({index: self._sides[index] for index in chosen}, dataset, eval_dataset, self._tested)

    def __len__(self) -> int:
        return self.n_splits

    def groups(self, dataset: Dataset, index: int) -> dict[str, Dataset]:
        """The groups of one fold."""
        return next(self.get_splits(dataset, splits=[index])).groups

    def _refuse_second_turns(self) -> None:
        """Within one repeat everybody is held out at most once, or pooled predictions would count them twice."""
        per_repeat = max(self.n_splits // self.repeats, 1)
        turns: dict[tuple[int, str], int] = {}
        again = {}
        for index, sides in self._sides.items():
            for person in dict.fromkeys(person for person, _ in sides.held_out):
                first = turns.setdefault((index // per_repeat, person), index)
                if first != index:
                    again[person] = f"{person!r} in split-{first} and split-{index}"
        if again:
            problems = [again[person] for person in sorted(again)]
            raise DataError(f"{self.split_dir}: participants are held out in two folds:\n{first_lines(problems)}")

    def _refuse_tested(self, outer: Path) -> None:
        """Folds inside a single split's folder are of its training side: nobody it holds out is in them."""
        tested = {person for person, _ in self._tested}
        inside = {person for sides in self._sides.values() for person, _ in [*sides.train, *sides.held_out]}
        if leaked := sorted(tested & inside):
            problems = [repr(person) for person in leaked]
            raise DataError(
                f"{self.split_dir}: the folds have participants that {outer} holds out; make them from its "
                f"{TRAIN}.tsv:\n{first_lines(problems)}"
            )


def _config(folder: Path, name: str, other: str, other_reader: str) -> dict[str, Any]:
    """The folder's configuration; says which reader to use when it is of the other kind."""
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no such folder")
    if not (folder / name).is_file():
        hint = f"; it has {other}: open it with {other_reader}" if (folder / other).is_file() else ""
        raise UsageError(f"{folder}: not the folder of a split, {name} is missing{hint}")
    return read_json(folder / name)


def _pairs(path: Path) -> list[Pair]:
    rows = read_sessions(path)
    for column in (PARTICIPANT, SESSION):
        if column not in rows.columns:
            raise DataError(f"{path}: no column {column!r}; it has: {', '.join(map(str, rows.columns))}")
    return list(dict.fromkeys(zip(rows[PARTICIPANT], rows[SESSION], strict=True)))


class _Samples:
    """A dataset's samples by (participant, session), or by participant where it knows no sessions."""

    def __init__(self, dataset: Dataset) -> None:
        people = participants_of(dataset)
        if people is None:
            raise DataError("the dataset does not tell whose its samples are: give it `participants`, one per sample")
        sessions: Sequence[str] | None = getattr(dataset, "sessions", None)
        self.dataset = dataset
        self.by_session = sessions is not None
        self.found: dict[tuple[str, ...], list[int]] = {}
        told = [people] if sessions is None else [people, sessions]
        for index, key in enumerate(zip(*(map(str, names) for names in told), strict=True)):
            self.found.setdefault(key, []).append(index)

    def key(self, pair: Pair) -> tuple[str, ...]:
        return pair if self.by_session else pair[:1]

    def part(self, pairs: Sequence[Pair], what: str, folder: Path) -> Part:
        """The samples of these pairs, in the dataset's order."""
        indices = sorted({i for pair in pairs for i in self.found.get(self.key(pair), ())})
        if not indices:
            listed = " ".join(self.key(pairs[0])) if pairs else "nobody"
            had = " ".join(next(iter(self.found), ("nothing",)))
            raise DataError(
                f"{folder}: the {what} side has no sample in the dataset (the table lists {listed} first, "
                f"the dataset has {had} first)"
            )
        return Part(self.dataset, indices)

    def absent(self, pairs: Sequence[Pair]) -> list[str]:
        """Pairs that the dataset lacks, as texts."""
        return sorted({" ".join(self.key(pair)) for pair in pairs if self.key(pair) not in self.found})


def _splits(
    sides: dict[int, Sides], dataset: Dataset, eval_dataset: Dataset | None, tested: Sequence[Pair] = ()
) -> Iterator[Split]:
    """Look everything up and warn, then give one split after the other."""
    train = _Samples(dataset)
    held_out = _Samples(evaluation_of(dataset) if eval_dataset is None else eval_dataset)
    _warn_absent(sides, train, held_out)

    def one_by_one() -> Iterator[Split]:
        for index, side in sides.items():
            groups: dict[str, Dataset] = {
                "train": train.part(side.train, "training", side.folder),
                "validation": held_out.part(side.held_out, "held-out", side.folder),
            }
            if any(held_out.key(pair) in held_out.found for pair in tested):
                groups["test"] = held_out.part(tested, "test", side.folder)
            yield Split(groups, about={"split_dir": str(side.folder)}, index=index)

    return one_by_one()


def _warn_absent(sides: dict[int, Sides], train: _Samples, held_out: _Samples) -> None:
    absent = sorted(
        {
            *train.absent([pair for side in sides.values() for pair in side.train]),
            *held_out.absent([pair for side in sides.values() for pair in side.held_out]),
        }
    )
    if absent:
        what = "(participant, session) pairs" if train.by_session and held_out.by_session else "participants"
        log.warning("%d %s of the split's tables are not in the dataset:\n%s", len(absent), what, first_lines(absent))
    several = any(len(side.train) > len({person for person, _ in side.train}) for side in sides.values())
    if several and not held_out.by_session:
        log.warning(
            "the split's tables list sessions and the dataset has no `sessions`: all samples of a participant are used"
        )


def open_splits(folder: str | Path) -> SingleSplit | KFold:
    """The folder of a split, whichever kind it is."""
    single = (Path(folder) / SINGLE_CONFIG).is_file() and not (Path(folder) / KFOLD_CONFIG).is_file()
    return SingleSplit(folder) if single else KFold(folder)
