"""Datasets from arrays in memory, and from other datasets: several cohorts, several images of one visit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from medtrain.data import Dataset, participants_of, sample_ids_of
from medtrain.errors import ConfigError, DataError, first_lines
from torch import Tensor

from medtrain_plugins.brain.data.bids import ONLY_SESSION
from medtrain_plugins.brain.data.transforms import Pipeline, Step, as_options
from medtrain_plugins.brain.data.volumes import voxel_size

log = logging.getLogger("medtrain")

T = TypeVar("T")


class ArrayDataset:
    """Images in memory, with the samples of `BidsDataset`.

    images: (N, C, D, H, W) or (N, C, H, W); floats are not copied, other numbers are converted. labels: (N,) whole
    numbers for classes, floats for regression. participants, sessions: one per image; without sessions, each
    participant has one image. masks: (N, 1, ...) whole numbers. transforms, augmentations: as for `BidsDataset`;
    `transforms` run once, here. spacing: size of a voxel in mm along each axis; default: 1.
    """

    def __init__(
        self,
        images: Any,
        labels: Any = None,
        participants: Sequence[str] | None = None,
        sessions: Sequence[str] | None = None,
        masks: Any = None,
        transforms: Sequence[Step] | None = None,
        augmentations: Sequence[Step] | None = None,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.images = torch.as_tensor(images)
        self.masks = None if masks is None else torch.as_tensor(masks, dtype=torch.int64)
        self.labels = None if labels is None else torch.as_tensor(labels)
        count, axes = len(self.images), self.images.dim() - 2
        if axes not in (2, 3):
            raise DataError(f"images: (N, C, D, H, W) or (N, C, H, W) is expected, not {tuple(self.images.shape)}")
        self.spacing = [1.0] * axes if spacing is None else list(map(float, spacing))
        if len(self.spacing) != axes or min(self.spacing) <= 0:
            raise DataError(f"spacing: {axes} lengths above 0 are expected, not {self.spacing}")
        if participants is None:
            participants = [f"sub-{number:04d}" for number in range(count)]
        self.participants = list(map(str, participants))
        self.sessions = [ONLY_SESSION] * count if sessions is None else list(map(str, sessions))
        given = {"labels": self.labels, "masks": self.masks, "participants": participants, "sessions": self.sessions}
        if wrong := [f"{name}: {len(part)}" for name, part in given.items() if part is not None and len(part) != count]:
            raise DataError(f"there are {count} images, but {', '.join(wrong)}")
        self.sample_ids = [f"{who}_{when}" for who, when in zip(self.participants, self.sessions, strict=True)]
        if len(set(self.sample_ids)) < count:
            raise DataError("participants: a participant has several images of one session; name their sessions")
        self.classes: list[int] | None = None
        if self.labels is not None and self.labels.is_floating_point():
            self.labels = self.labels.to(torch.float32)
        elif self.labels is not None:
            self.labels = self.labels.to(torch.int64)
            self.classes = self.labels.tolist()
        self.strata = self.classes or [0] * count
        self.transforms = [step.model_dump(mode="json") for step in as_options(transforms or ())]
        self.augmentations = [step.model_dump(mode="json") for step in as_options(augmentations or ())]
        self._ready = self._transformed() if self.transforms else None
        self._after = Pipeline(self.augmentations, random=True, where="augmentations") if self.augmentations else None
        if self._after is not None:
            self._after.check()
        self.deterministic = self._after is None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        sample: dict[str, Any] = {
            "sample_id": self.sample_ids[index],
            "participant_id": self.participants[index],
            "session_id": self.sessions[index],
        }
        sample |= self._arrays(index) if self._ready is None else self._ready[index]
        if self.labels is not None:
            sample["label"] = self.labels[index]
        if self._after is not None:
            sample = self._after(sample, seed=int(torch.randint(2**62, ())))
        return sample

    def evaluation(self) -> ArrayDataset:
        """The same samples without augmentations."""
        return _without_augmentations(self)

    def _arrays(self, index: int) -> dict[str, Tensor]:
        arrays = {"image": self.images[index].to(torch.float32), "spacing": torch.tensor(self.spacing)}
        if self.masks is not None:
            arrays["mask"] = self.masks[index]
        return arrays

    def _transformed(self) -> list[dict[str, Tensor]]:
        pipeline, axes = Pipeline(self.transforms), len(self.spacing)
        affine = np.diag([*self.spacing, *[1.0] * (4 - axes)])
        ready = []
        for index in range(len(self.images)):
            arrays, found = pipeline.with_affine(self._arrays(index), affine)
            ready.append(arrays | {"spacing": torch.tensor(voxel_size(found)[:axes], dtype=torch.float32)})
        return ready


class ConcatDataset:
    """Several cohorts as one dataset. Equal ids in two cohorts are two different participants.

    datasets: by the cohort's name, which is the prefix of the ids of samples and participants: `ADNI:sub-01`. Samples
    also have the text `cohort`.
    """

    def __init__(self, datasets: Mapping[str, Any]) -> None:
        if not datasets:
            raise DataError("datasets: at least one cohort is needed")
        self.datasets = dict(datasets)
        self._places = [(name, index) for name, dataset in self.datasets.items() for index in range(len(dataset))]
        self.sample_ids = [f"{n}:{i}" for n, part in self.datasets.items() for i in sample_ids_of(part)]
        self.participants = [
            f"{n}:{i}" for n, part in self.datasets.items() for i in participants_of(part) or sample_ids_of(part)
        ]
        parts = list(self.datasets.values())
        self.sessions = _joined(parts, "sessions")
        self.classes = _joined(parts, "classes")
        strata = _joined(parts, "strata")
        # A split is also balanced by cohort.
        self.strata = [f"{name} {'' if strata is None else strata[k]}" for k, (name, _) in enumerate(self._places)]
        self.deterministic = all(getattr(part, "deterministic", False) for part in parts)
        names = {tuple(found) for part in parts if (found := getattr(part, "class_names", None))}
        if len(names) > 1:
            raise DataError(
                f"the cohorts number their classes differently: {' and '.join(str(list(n)) for n in sorted(names))}; "
                "give all of them the same class_names"
            )

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        name, within = self._places[index]
        sample: dict[str, Any] = dict(self.datasets[name][within])
        sample["sample_id"], sample["participant_id"] = self.sample_ids[index], self.participants[index]
        return sample | {"cohort": name}

    def evaluation(self) -> ConcatDataset:
        """The same samples without augmentations."""
        return ConcatDataset({name: _evaluation(part) for name, part in self.datasets.items()})


class PairedDataset:
    """Several registered images of each visit: one sample for each visit that all datasets have.

    datasets: by the name of the image, for example {"t1w": ..., "flair": ...}; ids, labels and masks are those of the
    first. channels: stack the images as channels of `image`; otherwise their keys are the names of the datasets.
    augmentations: random transforms of MONAI, drawn once for all images of a sample; the datasets themselves must have
    none. missing: for visits that some dataset lacks, "error" or "skip".
    """

    def __init__(
        self,
        datasets: Mapping[str, Any],
        channels: bool = False,
        augmentations: Sequence[Step] | None = None,
        missing: Literal["error", "skip"] = "error",
    ) -> None:
        if len(datasets) < 2:
            raise DataError("datasets: at least two are needed for pairs")
        self.datasets, self.channels, self.missing = dict(datasets), channels, missing
        if drawing := [name for name, part in self.datasets.items() if not getattr(part, "deterministic", False)]:
            raise ConfigError(
                f"datasets: {drawing[0]!r} draws augmentations of its own, which would move its images against the "
                "others'; give them to PairedDataset"
            )
        rows = {name: {id: row for row, id in enumerate(sample_ids_of(part))} for name, part in self.datasets.items()}
        ids = dict.fromkeys(id for part in rows.values() for id in part)
        lacking = [f"{id}: no {', '.join(n for n in rows if id not in rows[n])}" for id in ids]
        lacking = [text for text, id in zip(lacking, ids, strict=True) if any(id not in part for part in rows.values())]
        if lacking and missing == "error":
            raise DataError(
                f'{len(lacking)} of {len(ids)} samples are incomplete; missing = "skip" leaves them out\n'
                + first_lines(lacking)
            )
        if lacking:
            log.warning("%d of %d samples are incomplete and left out", len(lacking), len(ids))
        self.sample_ids = [id for id in ids if all(id in part for part in rows.values())]
        if not self.sample_ids:
            raise DataError("no sample is in all datasets: " + ", ".join(self.datasets))
        self._rows = {name: [part[id] for id in self.sample_ids] for name, part in rows.items()}
        first = next(iter(self.datasets))
        self.participants, self.sessions, self.classes, self.strata = (
            _chosen(self.datasets[first], name, self._rows[first])
            for name in ("participants", "sessions", "classes", "strata")
        )
        self.class_names = getattr(self.datasets[first], "class_names", None)
        self.augmentations = [step.model_dump(mode="json") for step in as_options(augmentations or ())]
        images = ["image"] if channels else list(self.datasets)
        self._after = (
            Pipeline(self.augmentations, random=True, images=images, where="augmentations")
            if self.augmentations
            else None
        )
        if self._after is not None:
            self._after.check()
        self.deterministic = self._after is None

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        parts = {name: part[self._rows[name][index]] for name, part in self.datasets.items()}
        images = {name: part["image"] for name, part in parts.items()}
        sample = dict(next(iter(parts.values())))
        if not self.channels:
            del sample["image"]
            sample |= images
        else:
            if len({image.shape[1:] for image in images.values()}) > 1:
                shapes = ", ".join(f"{name} {tuple(image.shape)}" for name, image in images.items())
                raise DataError(f"{sample['sample_id']}: the images are not in register: {shapes}")
            sample["image"] = torch.cat(list(images.values()))
        if self._after is not None:
            sample = self._after(sample, seed=int(torch.randint(2**62, ())))
        return sample

    def evaluation(self) -> PairedDataset:
        """The same samples without augmentations."""
        return _without_augmentations(self)


class UnpairedDataset:
    """Images of two unrelated datasets, paired at random, differently in every epoch of training.

    datasets: two, by name, whose images are the keys of a sample; `sample_id`, `participant_id`, `session_id` and
    labels are those of the first, and `partner_id` (text) is the id of the second sample. It has as many samples as the
    first dataset; with `oversample` as many as the larger one, and the first is repeated.

    The partner is drawn from torch's generator, which is seeded for every training sample, so the pairing depends on
    the run's seed, the epoch and the position in it. `evaluation()` pairs in order instead. A split only sees the first
    dataset's participants: split both datasets first, then pair those of each group.
    """

    deterministic = False

    def __init__(self, datasets: Mapping[str, Any], oversample: bool = False) -> None:
        if len(datasets) != 2 or not all(len(part) for part in datasets.values()):
            raise DataError("datasets: two are needed, neither of them empty")
        self.datasets, self.oversample = dict(datasets), oversample
        (self._first, one), (self._second, other) = self.datasets.items()
        count = max(len(one), len(other)) if oversample else len(one)
        self._rows = [number % len(one) for number in range(count)]
        ids = sample_ids_of(one)
        rounds = [number // len(one) for number in range(count)]
        self.sample_ids = [
            f"{ids[row]}_again-{again}" if again else str(ids[row])
            for row, again in zip(self._rows, rounds, strict=True)
        ]
        self.participants, self.sessions, self.classes, self.strata = (
            _chosen(one, name, self._rows) for name in ("participants", "sessions", "classes", "strata")
        )
        self._in_order = False

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        other: Dataset = self.datasets[self._second]
        partner = index % len(other) if self._in_order else int(torch.randint(len(other), ()))
        sample = dict(self.datasets[self._first][self._rows[index]])
        drawn = other[partner]
        sample[self._first] = sample.pop("image")
        return sample | {
            "sample_id": self.sample_ids[index],
            self._second: drawn["image"],
            "partner_id": drawn["sample_id"],
        }

    def evaluation(self) -> UnpairedDataset:
        """The same samples without augmentations, paired in order."""
        plain = UnpairedDataset({name: _evaluation(part) for name, part in self.datasets.items()}, self.oversample)
        plain._in_order = plain.deterministic = True
        return plain


def _evaluation(dataset: Any) -> Any:
    return dataset.evaluation() if hasattr(dataset, "evaluation") else dataset


def _without_augmentations(dataset: T) -> T:
    plain: Any = copy.copy(dataset)
    plain.augmentations, plain._after, plain.deterministic = [], None, True
    made: T = plain
    return made


def _joined(parts: Sequence[Any], name: str) -> list[Any] | None:
    """An attribute of all parts, concatenated; None if one part does not have it."""
    found = [getattr(part, name, None) for part in parts]
    return None if any(values is None for values in found) else [value for values in found for value in values or ()]


def _chosen(dataset: Any, name: str, rows: Sequence[int]) -> list[Any] | None:
    values = getattr(dataset, name, None)
    return None if values is None else [values[row] for row in rows]
