"""Datasets, groups and the order in which samples are seen."""

from __future__ import annotations

from medtrain.data.contract import Augmentation, Data, Dataset, participants_of, sample_ids_of
from medtrain.data.loader import Item, Loader, collate
from medtrain.data.split import Joined, Split, split_groups
from medtrain.data.splitters import KFold, SingleSplit
from medtrain.data.tables import make_kfold, make_split

__all__ = [
    "Augmentation",
    "Data",
    "Dataset",
    "Item",
    "Joined",
    "KFold",
    "Loader",
    "SingleSplit",
    "Split",
    "collate",
    "make_kfold",
    "make_split",
    "participants_of",
    "sample_ids_of",
    "split_groups",
]
