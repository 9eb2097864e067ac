"""The global sample order, its sharding over processes, and batches in that order.

Every process derives the same order from (seed, epoch); a global batch is `batch_size * world` consecutive
positions of it, of which each process takes one contiguous part. Any position can be started from at once.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, default_collate

from medtrain.errors import DataError, MedtrainError
from medtrain.protocols.dataset import Augmentation, Dataset, classes_of
from medtrain.runtime import determinism

Batch = dict[str, Any]
DRAWS = "_draws"


class Item(NamedTuple):
    """One process's part of a global batch.

    positions: places in the global order. empty: this process got nothing and holds a sample of weight zero.
    """

    batch: Batch
    draws: dict[str, torch.Tensor] | None
    positions: list[int]
    empty: bool


def collate(samples: list[dict[str, Any]]) -> Batch:
    """A batch from samples: tensors are stacked, strings become lists, the rest is torch's default."""
    batch: Batch = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if type(first) is torch.Tensor:
            batch[key] = torch.stack(values)
        elif isinstance(first, str):
            batch[key] = values
        else:
            batch[key] = default_collate(values)
    return batch


def shard(start: int, stop: int, rank: int, world: int) -> range:
    """The contiguous part of positions [start, stop) that belongs to `rank`; sizes differ by one at most."""
    size, extra = divmod(stop - start, world)
    first = start + rank * size + min(rank, extra)
    return range(first, first + size + (rank < extra))


def sampling_weights(dataset: Dataset, sampling: str) -> torch.Tensor | None:
    """The chance of each sample, (N,) float64, under `data.sampling`; None when all are seen once an epoch.

    Raises DataError when the dataset does not say what it needs to.
    """
    if sampling == "weighted":
        if (weights := getattr(dataset, "weights", None)) is None:
            raise DataError(f"data.sampling: {type(dataset).__name__} names no weights; use 'shuffle'")
        return torch.as_tensor(weights, dtype=torch.float64)
    if sampling != "class_balanced":
        return None
    if (classes := classes_of(dataset)) is None:
        raise DataError(f"data.sampling: {type(dataset).__name__} names no classes; use 'shuffle'")
    labels = list(map(str, classes))
    counts = Counter(labels)
    return torch.tensor([1 / counts[label] for label in labels], dtype=torch.float64)


def epoch_size(samples: int, global_batch: int, max_batches: int | None = None, drop_last: bool = False) -> int:
    """How many samples an epoch draws: at least one batch, an incomplete one if there are no more."""
    size = min(samples, max_batches * global_batch) if max_batches else samples
    return size - size % global_batch if drop_last and size >= global_batch else size


class Loader:
    """Batches of one group in the global order.

    shuffle: a new order each epoch; otherwise dataset order. training: transforms are seeded per sample, as they are
    when samples are shuffled. weights: with `shuffle`, samples are drawn with replacement, by their weights, (N,).
    max_batches: an epoch ends after so many global batches. drop_last: without an incomplete one at its end.
    num_workers: 0 loads in this process, without torch's DataLoader (which costs 20 us a batch).
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        training: bool = False,
        weights: Sequence[float] | torch.Tensor | None = None,
        max_batches: int | None = None,
        drop_last: bool = False,
        augmentation: Augmentation | None = None,
        collate_fn: Callable[[list[dict[str, Any]]], Batch] | None = None,
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
        prefetch_factor: int | None = None,
        persistent_workers: bool = True,
    ) -> None:
        self.dataset, self.seed, self.shuffle = dataset, seed, shuffle
        self.rank, self.world = rank, world
        self.global_batch = batch_size * world
        self.size = epoch_size(len(dataset), self.global_batch, max_batches, drop_last)
        self.weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        self.fetch = _Fetch(dataset, augmentation, training or shuffle, collate_fn or collate)
        self.plan = _Plan()
        self.workers: Any = None
        if num_workers:
            self.workers = DataLoader(
                _InWorker(self.fetch),  # type: ignore[arg-type]  # torch asks for its own base class
                batch_sampler=self.plan,
                num_workers=num_workers,
                collate_fn=_first,
                worker_init_fn=_start_worker,
                persistent_workers=persistent_workers,
                prefetch_factor=prefetch_factor,
                pin_memory=pin_memory,
                generator=torch.Generator(),
            )

    def __len__(self) -> int:
        """Global batches in an epoch."""
        return -(-self.size // self.global_batch)

    def order(self, epoch: int) -> list[int]:
        """Dataset indices in the order in which `epoch` sees them, the same on every process."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(determinism.derive(self.seed, determinism.ORDER, epoch))
        if self.weights is None:
            drawn = torch.randperm(len(self.dataset), generator=generator)[: self.size]
        else:
            drawn = torch.multinomial(self.weights, self.size, replacement=True, generator=generator)
        order: list[int] = drawn.tolist()
        return order

    def epoch(self, epoch: int = 0, first: int = 0) -> Iterator[Item]:
        """This process's batches of an epoch, from global batch `first` on."""
        order = self.order(epoch)
        parts = [self._part(number) for number in range(first, len(self))]
        # What draws nothing needs no seed.
        base = determinism.derive(self.seed, determinism.SAMPLE, epoch)
        seed_of = determinism.deriver(base) if self.fetch.draws else _no_seed
        wanted = [[(order[p], seed_of(p)) for p in positions] for positions, _ in parts]
        if self.workers is None:
            batches: Iterator[Any] = map(self.fetch.__getitem__, wanted)
        else:
            self.plan.wanted = wanted
            batches = iter(self.workers)
        for (positions, empty), fetched in zip(parts, batches, strict=True):
            if isinstance(fetched, MedtrainError):
                raise fetched
            batch, draws = fetched
            yield Item(batch, draws, positions, empty)

    def close(self) -> None:
        """End the worker processes now: left to the garbage collector, each may be waited for 5 s."""
        iterator = getattr(self.workers, "_iterator", None)
        if iterator is not None:
            iterator._shutdown_workers()

    def __iter__(self) -> Iterator[Batch]:
        return (item.batch for item in self.epoch())

    def _part(self, number: int) -> tuple[list[int], bool]:
        start = number * self.global_batch
        positions = list(shard(start, min(start + self.global_batch, self.size), self.rank, self.world))
        return (positions, False) if positions else ([start], True)


class _Plan:
    """A batch sampler that repeats what the epoch wants; the workers hold no state."""

    def __init__(self) -> None:
        self.wanted: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[list[tuple[int, int]]]]:
        return ([pairs] for pairs in self.wanted)

    def __len__(self) -> int:
        return len(self.wanted)


class _Fetch:
    """Loads one batch: seeds, reads and draws sample by sample, wherever it runs."""

    def __init__(
        self,
        dataset: Dataset,
        augmentation: Augmentation | None,
        training: bool,
        collate_fn: Callable[[list[dict[str, Any]]], Batch],
    ) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn
        self.augmentation = augmentation if training else None
        self.seeded = training and not getattr(dataset, "deterministic", False)
        self.draws = self.seeded or self.augmentation is not None
        self.generator = torch.Generator()

    def __getitem__(self, pairs: list[tuple[int, int]]) -> tuple[Batch, dict[str, torch.Tensor] | None]:
        samples, draws = [], []
        for index, seed in pairs:
            if self.seeded:
                determinism.seed_sample(seed)
            samples.append(self.dataset[index])
            if self.augmentation is not None:
                draws.append(self.augmentation.draw(self.generator.manual_seed(seed)))
        if "sample_id" not in samples[0]:
            raise DataError(f"samples of {type(self.dataset).__name__} have no 'sample_id'; add one, unique and stable")
        return self.collate_fn(samples), collate(draws) if draws else None

    def __len__(self) -> int:
        return len(self.dataset)


class _InWorker:
    """Fetches in a loader process. Errors for people travel as they are: torch would send their traceback as text."""

    def __init__(self, fetch: _Fetch) -> None:
        self.fetch = fetch

    def __getitem__(self, pairs: list[tuple[int, int]]) -> Any:
        try:
            return self.fetch[pairs]
        except MedtrainError as error:
            return error

    def __len__(self) -> int:
        return len(self.fetch)


def _no_seed(position: int) -> int:
    return 0


def _first(fetched: list[Any]) -> Any:
    return fetched[0]


def _start_worker(worker: int) -> None:
    # The training process answers signals; a worker must end when it is told to and not print on Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
