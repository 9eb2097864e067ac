"""Datasets, groups and the order in which samples are seen. Every name is fetched when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtrain_plugins.standard.splits.partition import assign_folds, hold_out
    from medtrain_plugins.standard.splits.split_tables import make_kfold, make_split
    from medtrain_plugins.standard.splits.splitters import KFold, SingleSplit
    from medtrain_plugins.standard.splits.splitting import split_groups

    from medtrain.data.adapters import NamedSamples, Weighted
    from medtrain.data.cache import cache_dir
    from medtrain.data.loader import Item, Loader, collate
    from medtrain.data.preparing import processes, refuse_mixture, write_report
    from medtrain.data.split import Joined, Part, Split
    from medtrain.data.tables import read_rows
    from medtrain.protocols.dataset import Augmentation, Data, Dataset, participants_of, sample_ids_of

_HOMES = {
    "Augmentation": "medtrain.protocols.dataset",
    "Data": "medtrain.protocols.dataset",
    "Dataset": "medtrain.protocols.dataset",
    "Item": "medtrain.data.loader",
    "Joined": "medtrain.data.split",
    "KFold": "medtrain_plugins.standard.splits.splitters",
    "Loader": "medtrain.data.loader",
    "NamedSamples": "medtrain.data.adapters",
    "Part": "medtrain.data.split",
    "SingleSplit": "medtrain_plugins.standard.splits.splitters",
    "Split": "medtrain.data.split",
    "Weighted": "medtrain.data.adapters",
    "cache_dir": "medtrain.data.cache",
    "collate": "medtrain.data.loader",
    "assign_folds": "medtrain_plugins.standard.splits.partition",
    "hold_out": "medtrain_plugins.standard.splits.partition",
    "make_kfold": "medtrain_plugins.standard.splits.split_tables",
    "make_split": "medtrain_plugins.standard.splits.split_tables",
    "participants_of": "medtrain.protocols.dataset",
    "processes": "medtrain.data.preparing",
    "read_rows": "medtrain.data.tables",
    "refuse_mixture": "medtrain.data.preparing",
    "sample_ids_of": "medtrain.protocols.dataset",
    "split_groups": "medtrain_plugins.standard.splits.splitting",
    "write_report": "medtrain.data.preparing",
}

__all__ = [
    "Augmentation",
    "Data",
    "Dataset",
    "Item",
    "Joined",
    "KFold",
    "Loader",
    "NamedSamples",
    "Part",
    "SingleSplit",
    "Split",
    "Weighted",
    "assign_folds",
    "cache_dir",
    "collate",
    "hold_out",
    "make_kfold",
    "make_split",
    "participants_of",
    "processes",
    "read_rows",
    "refuse_mixture",
    "sample_ids_of",
    "split_groups",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'medtrain.data' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
