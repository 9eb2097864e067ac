"""Datasets, groups and the order in which samples are seen."""

from __future__ import annotations

from medtrain.data.contract import Augmentation, Data, Dataset, participants_of, sample_ids_of
from medtrain.data.loader import Item, Loader, collate
from medtrain.data.split import Joined, Split, make_split

__all__ = [
    "Augmentation",
    "Data",
    "Dataset",
    "Item",
    "Joined",
    "Loader",
    "Split",
    "collate",
    "make_split",
    "participants_of",
    "sample_ids_of",
]
