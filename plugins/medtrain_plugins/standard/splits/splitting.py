"""The default split of a dataset: by tables, into folds, or by fractions, whole participants only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medtrain.config import RunConfig
from medtrain.data import Part, Split
from medtrain.errors import DataError
from medtrain.protocols import GROUPS, Data, Dataset, evaluation_of, participants_of, sample_ids_of
from medtrain.runtime.determinism import SPLIT, derive

from medtrain_plugins.standard.splits.partition import assign_folds, hold_out


def split_data(config: RunConfig, data: Data | None) -> Split:
    """Split number `config.split` by the section `data`; of no data only how many splits there are."""
    settings = config.data
    if data is None:
        return Split({}, count=count_splits(settings.num_folds, settings.splits))
    return split_groups(
        data,
        config.run.seed,
        settings.validation_fraction,
        settings.test_fraction,
        settings.num_folds,
        settings.splits,
        config.split,
    )


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
        from medtrain_plugins.standard.splits.splitters import open_splits

        return len(open_splits(splits))
    return max(1, num_folds)


def _by_tables(dataset: Any, folder: Path, index: int) -> dict[str, Dataset]:
    """The groups that the tables of a folder name."""
    from medtrain_plugins.standard.splits.splitters import open_splits

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
        stream = derive(seed, SPLIT, number)
        held_out = hold_out([owners[row] for row in rows], values, round(fraction * everyone), stream)
        group_of |= dict.fromkeys(held_out, name)
        rows = [row for row in rows if owners[row] not in held_out]
    if num_folds:
        values = None if strata is None else [strata[row] for row in rows]
        folds = assign_folds([owners[row] for row in rows], values, num_folds, derive(seed, SPLIT))
        group_of |= {owner: "validation" for owner, fold in folds.items() if fold == index}
    used = {"train", *group_of.values()}
    members_of: dict[str, list[int]] = {name: [] for name in GROUPS if name in used or fractions.get(name)}
    for place, owner in enumerate(owners):
        members_of[group_of.get(owner, "train")].append(place)
    plain = evaluation_of(dataset)
    return {name: Part(dataset if name == "train" else plain, indices) for name, indices in members_of.items()}
