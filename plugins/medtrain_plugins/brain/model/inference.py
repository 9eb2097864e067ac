"""Inference on a whole image: in windows, slice by slice, with mirrored copies; and joining the results of parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medtrain_plugins.brain.data.extraction import VolumePart, padded, windows_of
from medtrain_plugins.brain.options import InferenceOptions

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Inference:
    """Applies a network to an image (B, C, *size) outside training.

    options: see `InferenceOptions`. dense: whether results are images. logits: whether they are logits, which are
    averaged as probabilities and returned as their logarithms; other results are averaged directly. Overlapping windows
    inside an image are blended before that, in the network's own unit.
    """

    options: InferenceOptions = field(default_factory=InferenceOptions)  # type: ignore[arg-type]
    dense: bool = False
    logits: bool = True

    def __call__(self, network: Network, image: Tensor) -> Tensor:
        """The result for the image: the mean over its mirrored copies, each flipped back."""
        dims = [axis + 2 for axis in self.options.flips if axis + 2 < image.dim()]
        if not dims:
            return self.once(network, image)
        found = []
        for flipped in subsets(dims):
            result = self.once(network, image.flip(flipped))
            found.append(result.flip(flipped) if self.dense else result)
        return self.mean(found)

    def once(self, network: Network, image: Tensor) -> Tensor:
        """The result without mirrored copies: slice by slice, in windows, or at once."""
        if self.options.slice_axis is not None and image.dim() == 5:
            return self.by_slices(network, image)
        window = self.window(image.dim() - 2)
        if window is None:
            return network(image)
        # Smaller images are padded to the window.
        return self._blend(network, image, window) if self.dense else self._vote(network, image, window)

    def window(self, axes: int) -> list[int] | None:
        """The size of the sliding window along every axis, or None."""
        sizes = self.options.window
        return None if not sizes else list(sizes) * (axes if len(sizes) == 1 else 1)

    def by_slices(self, network: Network, image: Tensor) -> Tensor:
        """A 2-D network applied across an axis of (B, C, D, H, W): volumes of its results, or the mean over slices."""
        assert self.options.slice_axis is not None
        dim = self.options.slice_axis + 2
        slices = image.movedim(dim, 1).flatten(0, 1)
        results = torch.cat([network(part) for part in torch.split(slices, self.options.batch_size)])
        results = torch.unflatten(results, 0, (image.shape[0], image.shape[dim]))
        return results.movedim(1, dim) if self.dense else self.mean(list(results.unbind(dim=1)))

    def mean(self, results: Sequence[Tensor]) -> Tensor:
        """The mean of results of equal shape (B, C, ...)."""
        if not self.logits:
            return torch.stack([result.float() for result in results]).mean(dim=0)
        return log_mean_probability(torch.stack([result.float() for result in results]))

    def _blend(self, network: Network, image: Tensor, window: list[int]) -> Tensor:
        from monai.inferers import sliding_window_inference

        options = self.options
        found: Any = sliding_window_inference(
            image, window, options.batch_size, network, overlap=options.overlap, mode=options.blend
        )
        result: Tensor = found
        return result

    def _vote(self, network: Network, image: Tensor, window: list[int]) -> Tensor:
        image = padded(image, window)
        parts = [
            image[(slice(None), slice(None), *place)]
            for place in windows_of(image.shape[2:], window, self.options.overlap)
        ]
        results: list[Tensor] = []
        for start in range(0, len(parts), self.options.batch_size):
            group = parts[start : start + self.options.batch_size]
            results += torch.split(network(torch.cat(group)), len(image))
        return self.mean(results)


def log_mean_probability(logits: Tensor) -> Tensor:
    """(N, B, C, ...) logits -> (B, C, ...), the logarithm of the mean over N of their softmax over C."""
    return torch.logsumexp(logits.log_softmax(dim=2), dim=0) - float(np.log(len(logits)))


def subsets(dims: Sequence[int]) -> Iterator[list[int]]:
    """All subsets, the empty one first."""
    for count in range(len(dims) + 1):
        yield from map(list, itertools.combinations(dims, count))


def put_together(parts: Sequence[Tensor], places: Sequence[VolumePart], shape: Sequence[int]) -> Tensor:
    """One image (C, D, H, W) from results (C, *size) for its parts, averaged where they overlap.

    places: the positions of the parts; voxels of the padding are dropped. Slices may lack their axis of length 1.
    Voxels outside all parts are NaN.
    """
    total = torch.zeros(parts[0].shape[0], *shape, dtype=torch.float64)
    count = torch.zeros(shape, dtype=torch.float64)
    for part, place in zip(parts, places, strict=True):
        sizes = [stop - start for start, stop in zip(place.start, place.stop, strict=True)]
        whole = part.double().reshape(part.shape[0], *sizes)
        inside = [slice(max(a, 0), min(b, n)) for a, b, n in zip(place.start, place.stop, shape, strict=True)]
        taken = [slice(s.start - a, s.stop - a) for s, a in zip(inside, place.start, strict=True)]
        total[(slice(None), *inside)] += whole[(slice(None), *taken)]
        count[tuple(inside)] += 1
    return (total / count).float()
