"""Datasets, groups and the order in which samples are seen. Every name is fetched when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medtrain_plugins.standard.preparing import processes, refuse_mixture, write_report
    from medtrain_plugins.standard.splits.partition import assign_folds, hold_out
    from medtrain_plugins.standard.splits.split_tables import make_kfold, make_split
    from medtrain_plugins.standard.splits.splitters import KFold, SingleSplit
    from medtrain_plugins.standard.splits.splitting import split_groups
    from medtrain_plugins.standard.tables import (
        BIDS_MISSING,
        CSV_MISSING,
        infer_types,
        missing_words,
        parse_numbers,
        read_cells,
        read_table,
        table_from_rows,
    )

    from medtrain.data.adapters import NamedSamples, Weighted
    from medtrain.data.cache import cache_dir
    from medtrain.data.loader import Item, Loader, collate
    from medtrain.data.split import Joined, Part, Split
    from medtrain.protocols.dataset import Augmentation, Data, Dataset, participants_of, sample_ids_of

# Where each public name lives.
_HOMES = {
    "medtrain.data.adapters": ("NamedSamples", "Weighted"),
    "medtrain.data.cache": ("cache_dir",),
    "medtrain.data.loader": ("Item", "Loader", "collate"),
    "medtrain_plugins.standard.preparing": ("processes", "refuse_mixture", "write_report"),
    "medtrain.data.split": ("Joined", "Part", "Split"),
    "medtrain_plugins.standard.tables": (
        "BIDS_MISSING",
        "CSV_MISSING",
        "infer_types",
        "missing_words",
        "parse_numbers",
        "read_cells",
        "read_table",
        "table_from_rows",
    ),
    "medtrain.protocols.dataset": ("Augmentation", "Data", "Dataset", "participants_of", "sample_ids_of"),
    "medtrain_plugins.standard.splits.partition": ("assign_folds", "hold_out"),
    "medtrain_plugins.standard.splits.split_tables": ("make_kfold", "make_split"),
    "medtrain_plugins.standard.splits.splitters": ("KFold", "SingleSplit"),
    "medtrain_plugins.standard.splits.splitting": ("split_groups",),
}

__all__ = [
    "BIDS_MISSING", "CSV_MISSING", "Augmentation", "Data", "Dataset", "Item", "Joined", "KFold", "Loader",
    "NamedSamples", "Part", "SingleSplit", "Split", "Weighted", "assign_folds", "cache_dir", "collate", "hold_out",
    "infer_types", "make_kfold", "make_split", "missing_words", "parse_numbers", "participants_of", "processes",
    "read_cells", "read_table", "refuse_mixture", "sample_ids_of", "split_groups", "table_from_rows", "write_report",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(module), name)
            return value
    raise AttributeError(f"module 'medtrain.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
