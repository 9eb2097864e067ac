"""From heatmaps to candidates: local maxima, subvoxel positions, one candidate per nodule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medtrain_plugins.nodule.data.targets import to_input


@dataclass(frozen=True)
class Candidate:
    """A possible nodule.

    zyx: voxel coordinates in the input, fractional. confidence: in [0, 1]. diameters_mm: zyx; None without such a head.
    triage: probabilities in [0, 1], one per channel of the head.
    """

    zyx: tuple[float, float, float]
    confidence: float
    diameters_mm: tuple[float, float, float] | None = None
    triage: tuple[float, ...] = ()

    @property
    def diameter_mm(self) -> float | None:
        """Of the sphere with the volume of the ellipsoid: the geometric mean."""
        return None if self.diameters_mm is None else float(np.prod(self.diameters_mm) ** (1 / 3))


def find_peaks(
    heatmap: Tensor, kernel: int = 3, min_confidence: float = 0.1, top_k: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The local maxima of a map (D, H, W), highest first: positions (N, 3) zyx, confidences (N,).

    kernel: odd; a maximum is the highest value in this cube around it. A flat maximum is one point, its centroid; a
    flat shoulder beside a higher voxel is not a maximum. Only values of at least `min_confidence`, and above 0, count.
    top_k: largest number of maxima.
    """
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"peaks: kernel {kernel} must be odd")
    values = heatmap.detach().double() if heatmap.device.type == "cpu" else heatmap.detach().float()
    highest = _maximum(values, kernel)
    eligible = (values >= min_confidence) & (values > 0)
    is_top = (values == highest) & eligible
    # A voxel with an equal neighbour that is not a maximum is on a shoulder, and so is its whole flat region.
    beside = _maximum(torch.where(is_top, -torch.inf, values), 3)
    shoulder = (is_top & (beside == values)).cpu().numpy()
    labels, count = ndimage.label(is_top.cpu().numpy(), structure=np.ones((3, 3, 3)))
    if count == 0:
        return np.zeros((0, 3)), np.zeros(0)
    voxels = np.argwhere(labels)
    owner = labels[tuple(voxels.T)] - 1
    sizes = np.bincount(owner, minlength=count)
    centroids = np.stack([np.bincount(owner, voxels[:, axis], count) / sizes for axis in range(3)], axis=1)
    confidences = np.zeros(count)
    confidences[owner] = values.cpu().numpy()[tuple(voxels.T)]
    kept = np.setdiff1d(np.arange(count), labels[shoulder] - 1)
    order = kept[np.argsort(-confidences[kept], kind="stable")][:top_k]
    return centroids[order], confidences[order]


def decode(
    outputs: Mapping[str, Tensor | None],
    spacing: ArrayLike,
    *,
    stride: int = 1,
    kernel: int = 3,
    min_confidence: float = 0.1,
    top_k: int | None = None,
    merge: bool = False,
) -> list[Candidate]:
    """The candidates of one volume, highest confidence first.

    outputs: maps on the output grid without batch axis: `heatmap` (1, d, h, w) probabilities; if there: `offset` (3,
    ...) output voxels, `log_diameter` (1 or 3, ...) ln mm, `triage` (K, ...) probabilities. Values at a peak are means
    over 3 x 3 x 3 voxels, weighted by the heatmap. spacing: zyx mm of the input. stride: of the output. Candidates
    closer together than the larger radius become one (`suppress`).
    """
    heatmap = outputs["heatmap"]
    assert heatmap is not None
    positions, confidences = find_peaks(heatmap[0], kernel, min_confidence, top_k)
    voxels = np.floor(positions + 0.5).astype(np.int64)
    # The centroid of a flat maximum of several voxels has subvoxel precision already.
    single = (positions == voxels).all(axis=1)
    offset = _read(outputs.get("offset"), heatmap[0], voxels)
    if offset is not None:
        positions = positions + np.where(single[:, None], offset, 0.0)
    diameters = _read(outputs.get("log_diameter"), heatmap[0], voxels)
    triage = _read(outputs.get("triage"), heatmap[0], voxels)
    candidates = []
    for number, (zyx, confidence) in enumerate(zip(to_input(positions, stride), confidences, strict=True)):
        size = None if diameters is None else tuple(np.broadcast_to(np.exp(diameters[number]), 3).tolist())
        scores = () if triage is None else tuple(triage[number].tolist())
        candidates.append(Candidate(tuple(zyx.tolist()), float(confidence), size, scores))
    return suppress(candidates, spacing, merge=merge)


def suppress(
    candidates: Sequence[Candidate], spacing: ArrayLike, *, merge: bool = False, default_radius_mm: float = 5.0
) -> list[Candidate]:
    """Keeps the most confident of candidates that are closer together than the larger of their radii.

    spacing: zyx mm. merge: position, diameters and triage become the means of the merged candidates, weighted by
    confidence. default_radius_mm: of candidates without a diameter.
    """
    ranked = sorted(candidates, key=lambda candidate: -candidate.confidence)
    if not ranked:
        return []
    millimetres = np.array([candidate.zyx for candidate in ranked]) * np.asarray(spacing, dtype=np.float64)
    radii = np.array([default_radius_mm if (d := c.diameter_mm) is None else d / 2 for c in ranked])
    left = np.ones(len(ranked), dtype=bool)
    kept = []
    for number, candidate in enumerate(ranked):
        if not left[number]:
            continue
        distance = np.linalg.norm(millimetres - millimetres[number], axis=1)
        same = left & (distance < np.maximum(radii, radii[number]))
        same[number] = True
        left &= ~same
        kept.append(_merged([ranked[index] for index in np.flatnonzero(same)]) if merge else candidate)
    return kept


def _merged(group: list[Candidate]) -> Candidate:
    weights = [candidate.confidence for candidate in group]
    z, y, x = np.average([candidate.zyx for candidate in group], axis=0, weights=weights).tolist()
    sizes = None
    if all(candidate.diameters_mm is not None for candidate in group):
        logs = np.log(np.array([candidate.diameters_mm for candidate in group], dtype=np.float64))
        a, b, c = np.exp(np.average(logs, axis=0, weights=weights)).tolist()
        sizes = (a, b, c)
    triage = tuple(np.average([candidate.triage for candidate in group], axis=0, weights=weights).tolist())
    return replace(group[0], zyx=(z, y, x), diameters_mm=sizes, triage=triage)


def _maximum(values: Tensor, kernel: int) -> Tensor:
    return functional.max_pool3d(values[None, None], kernel, stride=1, padding=kernel // 2)[0, 0]


def _read(values: Tensor | None, heatmap: Tensor, voxels: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """Means of (C, D, H, W) over the 3 x 3 x 3 voxels around each of (N, 3), weighted by the heatmap: (N, C)."""
    if values is None:
        return None
    steps = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(1, 27, 3)
    around = torch.from_numpy(voxels[:, None] + steps).to(heatmap.device)
    size = torch.tensor(heatmap.shape, device=heatmap.device)
    inside = ((around >= 0) & (around < size)).all(dim=-1)
    z, y, x = torch.minimum(around.clamp(min=0), size - 1).unbind(-1)
    weights = torch.where(inside, heatmap[z, y, x].float(), 0.0)
    sums = (values[:, z, y, x].float() * weights).sum(dim=-1)
    means: NDArray[np.float64] = (sums / weights.sum(dim=-1)).T.cpu().double().numpy()
    return means
