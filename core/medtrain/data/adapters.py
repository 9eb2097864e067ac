"""Data of other make: datasets of tuples and ready-made loaders, as the core's contract wants them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, WeightedRandomSampler
from torch.utils.data import default_collate as torch_collate

from medtrain.errors import DataError
from medtrain.protocols.dataset import OPTIONAL, sample_ids_of

KEYS = ("image", "label")


class NamedSamples:
    """A dataset of tuples or dicts with names for the parts and for every sample.

    keys: names of a tuple's parts. prefix: sample i is called `<prefix>-<i>` unless the dataset names its samples.
    """

    def __init__(self, dataset: Any, keys: Sequence[str] = KEYS, prefix: str = "sample") -> None:
        self.dataset, self.keys, self.prefix = dataset, keys, prefix
        named = getattr(dataset, "sample_ids", None)
        self.sample_ids = [f"{prefix}-{i}" for i in range(len(dataset))] if named is None else list(map(str, named))

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = self.dataset[index]
        if not isinstance(item, Mapping):
            parts = item if isinstance(item, (tuple, list)) else (item,)
            item = dict(zip(self.keys, parts, strict=False))
        return {**item, "sample_id": self.sample_ids[index]}

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONAL:
            return getattr(self.dataset, name)
        raise AttributeError(name)


class Weighted:
    """A dataset with the weights by which `data.sampling = "weighted"` draws its samples."""

    def __init__(self, dataset: Any, weights: Sequence[float]) -> None:
        self.weights = [float(weight) for weight in weights]
        if len(self.weights) != len(dataset):
            raise DataError(f"sampling_weights: {len(self.weights)} weights for {len(dataset)} samples")
        self.dataset = dataset
        self.sample_ids = sample_ids_of(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = self.dataset[index]
        return sample

    def __getattr__(self, name: str) -> Any:
        if name in OPTIONAL:
            return getattr(self.dataset, name)
        raise AttributeError(name)


def named(dataset: Any, group: str) -> Any:
    """The dataset itself when its samples are dicts with `sample_id`, else `NamedSamples` of it.

    Reads its first sample.
    """
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")) or isinstance(dataset, IterableDataset):
        raise DataError(
            f"group {group!r}: {type(dataset).__name__} cannot be read by index; give a map-style dataset "
            "(`__len__` and `__getitem__`), so that any position can be started from"
        )
    if not len(dataset) or (isinstance(first := dataset[0], Mapping) and "sample_id" in first):
        return dataset
    return NamedSamples(dataset, prefix=group)


def from_dataloader(loader: DataLoader[Any]) -> tuple[Any, dict[str, Any]]:
    """A ready-made loader as (dataset, keyword arguments of `Split.build_*_loader`).

    Its dataset, batch size, order, workers and collate function are taken over; the batches are drawn by the core,
    which can start at any position. Raises DataError for orders only the loader knows.
    """
    batch_sampler = loader.batch_sampler
    sampler = getattr(batch_sampler, "sampler", loader.sampler)
    if loader.batch_size is None or not isinstance(sampler, (RandomSampler, SequentialSampler, WeightedRandomSampler)):
        raise DataError(
            f"the loader draws by {type(sampler).__name__}, which cannot be continued after an interruption; give the "
            "dataset in a medtrain.Split and weights or classes to draw by"
        )
    settings: dict[str, Any] = {
        "batch_size": loader.batch_size,
        "shuffle": not isinstance(sampler, SequentialSampler),
        "num_workers": loader.num_workers,
        "drop_last": loader.drop_last,
        "pin_memory": loader.pin_memory,
    }
    if loader.num_workers:
        settings |= {"prefetch_factor": loader.prefetch_factor, "persistent_workers": loader.persistent_workers}
    if isinstance(sampler, WeightedRandomSampler):
        settings["sampling_weights"] = sampler.weights.tolist()
    if loader.collate_fn is not torch_collate:
        settings["collate_fn"] = loader.collate_fn
    return loader.dataset, settings
