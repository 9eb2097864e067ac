"""What a plugin hands over as data, and what the core expects of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

GROUPS = ("train", "validation", "test")
# What a dataset may have besides its samples.
OPTIONAL = ("sample_ids", "participants", "sessions", "strata", "classes", "weights", "deterministic")


class Dataset(Protocol):
    """A map-style dataset. Samples are dicts of tensors, numbers and strings; `sample_id` names the sample.

    Optional attributes:
      sample_ids: Sequence[str]    one per sample, unique; default: the index as text
      participants: Sequence[str]  whose sample it is; a participant may be in one group only
      strata: Sequence[Any]        what to balance when the core splits the dataset
      sessions: Sequence[str]      when it was taken, to find samples by (participant, session)
      classes: Sequence[Any]       what `data.sampling = "class_balanced"` balances in training
      weights: Sequence[float]     what `data.sampling = "weighted"` draws by in training
      deterministic: bool          True when `__getitem__` draws nothing at random; otherwise Python's, NumPy's
                                   and torch's generators are seeded before each training sample
    Optional method:
      evaluation() -> Dataset      the same samples without augmentation, for the groups that are not trained on
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class Augmentation(Protocol):
    """Random change of training samples: drawn per sample on the host, applied per batch on the device."""

    def draw(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """The random parameters of one sample, as small tensors of fixed shape."""
        ...

    def __call__(self, batch: dict[str, Any], draws: dict[str, torch.Tensor]) -> dict[str, Any]:
        """The batch with the draws (stacked, first dimension B) applied."""
        ...


@dataclass
class Data:
    """Answer of `build_data`: datasets by group, or `whole` for the core to split by participant.

    collate: list of samples -> batch (a dict with `sample_id: list[str]`); default: torch's, strings as lists.
    about: facts worth recording in the run directory (counts, sources), JSON only.
    """

    train: Dataset | None = None
    validation: Dataset | None = None
    test: Dataset | None = None
    whole: Dataset | None = None
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def groups(self) -> dict[str, Dataset]:
        """The datasets there are, by group name."""
        found = {name: getattr(self, name) for name in GROUPS}
        return {name: dataset for name, dataset in found.items() if dataset is not None}


def evaluation_of(dataset: Any) -> Any:
    """The dataset as it is outside training: without augmentation, where it offers `evaluation()`."""
    return dataset.evaluation() if hasattr(dataset, "evaluation") else dataset


def sample_ids_of(dataset: Dataset) -> Sequence[str]:
    """One name per sample."""
    ids = getattr(dataset, "sample_ids", None)
    return [str(i) for i in range(len(dataset))] if ids is None else ids


def classes_of(dataset: Dataset) -> Sequence[Any] | None:
    """The class of each sample, one per sample; None when the dataset does not say."""
    found: Sequence[Any] | None = getattr(dataset, "classes", None)
    return found


def participants_of(dataset: Dataset) -> Sequence[str] | None:
    """Whose sample it is, one per sample; None when the dataset does not say."""
    found: Sequence[str] | None = getattr(dataset, "participants", None)
    return found
