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
    from medtrain.data.tables import (
        BIDS_MISSING,
        CSV_MISSING,
        infer_types,
        missing_words,
        parse_numbers,
        read_cells,
        read_table,
        table_from_rows,
    )
    from medtrain.protocols.dataset import Augmentation, Data, Dataset, participants_of, sample_ids_of

_HOMES = {
    "Augmentation": "medtrain.protocols.dataset",
    "BIDS_MISSING": "medtrain.data.tables",
    "CSV_MISSING": "medtrain.data.tables",
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
    "infer_types": "medtrain.data.tables",
    "make_kfold": "medtrain_plugins.standard.splits.split_tables",
    "make_split": "medtrain_plugins.standard.splits.split_tables",
    "missing_words": "medtrain.data.tables",
    "parse_numbers": "medtrain.data.tables",
    "participants_of": "medtrain.protocols.dataset",
    "processes": "medtrain.data.preparing",
    "read_cells": "medtrain.data.tables",
    "read_table": "medtrain.data.tables",
    "refuse_mixture": "medtrain.data.preparing",
    "sample_ids_of": "medtrain.protocols.dataset",
    "split_groups": "medtrain_plugins.standard.splits.splitting",
    "table_from_rows": "medtrain.data.tables",
    "write_report": "medtrain.data.preparing",
}

__all__ = [
    "BIDS_MISSING",
    "CSV_MISSING",
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
    "infer_types",
    "make_kfold",
    "make_split",
    "missing_words",
    "parse_numbers",
    "participants_of",
    "processes",
    "read_cells",
    "read_table",
    "refuse_mixture",
    "sample_ids_of",
    "split_groups",
    "table_from_rows",
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
