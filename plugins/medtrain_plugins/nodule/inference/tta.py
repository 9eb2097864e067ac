"""Views of a scan for test-time augmentation: flips and quarter turns, each with its exact inverse.

A view is a permutation of the axes and a flip of some of them. All combinations of flips and of quarter turns of the
axial plane are such views. Nothing is interpolated, and inverted maps lie exactly on the scan's voxels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from medtrain.errors import ConfigError, nearest
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Axes = tuple[int, int, int]
Flips = tuple[bool, bool, bool]

VECTORS = ("offset",)  # zyx maps whose components point along axes
LENGTHS = ("log_diameter",)  # zyx maps whose components are measured along axes


@dataclass(frozen=True)
class View:
    """Axis a of the view is axis order[a] of the scan, reversed if flips[a]. Axes are z, y, x."""

    order: Axes = (0, 1, 2)
    flips: Flips = (False, False, False)

    def apply(self, values: Tensor) -> Tensor:
        """The view of (..., D, H, W)."""
        lead = values.dim() - 3
        moved = values.permute(*range(lead), *(lead + axis for axis in self.order))
        backwards = [lead + axis for axis in range(3) if self.flips[axis]]
        return moved.flip(backwards) if backwards else moved

    def invert(self, values: Tensor) -> Tensor:
        """The inverse of `apply`."""
        return self.inverse.apply(values)

    @property
    def inverse(self) -> View:
        """The inverse view."""
        back = _axes(np.argsort(self.order).tolist())
        return View(back, _flips(self.flips[axis] for axis in back))

    def then(self, other: View) -> View:
        """This view, followed by `other`."""
        order = _axes(self.order[axis] for axis in other.order)
        return View(
            order, _flips(self.flips[axis] != flip for axis, flip in zip(other.order, other.flips, strict=True))
        )

    def points(self, zyx: ArrayLike, shape: Sequence[int]) -> NDArray[np.float64]:
        """Voxel coordinates (N, 3) of a scan of `shape`, in the view."""
        points = np.asarray(zyx, dtype=np.float64).reshape(-1, 3)[:, list(self.order)]
        last = np.asarray(shape, dtype=np.float64)[list(self.order)] - 1
        return np.where(self.flips, last - points, points)

    def invert_maps(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The maps (C, D, H, W) of the view, on the scan.

        Offsets are rotated too, and diameters of three channels are permuted.
        """
        if self == View():
            return dict(maps)
        found = {}
        for name, values in maps.items():
            back = self.invert(values)
            if name in VECTORS or (name in LENGTHS and len(values) == 3):
                back = back[list(self.inverse.order)]
            if name in VECTORS:
                signs = [-1.0 if self.inverse.flips[axis] else 1.0 for axis in range(3)]
                back = back * torch.tensor(signs, dtype=back.dtype, device=back.device)[:, None, None, None]
            found[name] = back
        return found


GENERATORS = {
    "flip_x": View(flips=(False, False, True)),
    "flip_y": View(flips=(False, True, False)),
    "flip_z": View(flips=(True, False, False)),
    # As numpy.rot90 and torch.rot90 rotate from y to x.
    "rotate_90": View((0, 2, 1), (False, True, False)),
}


def make_views(names: Sequence[str], count: int | None = None) -> list[View]:
    """All different views by the named augmentations and their combinations, the scan itself first.

    Views of fewer steps come first: with all four names there are 16, and the first 5 are the scan and the four single
    augmentations. count: largest number of views. Raises ConfigError for unknown names.
    """
    for name in names:
        if name not in GENERATORS:
            raise ConfigError(
                f"test-time augmentation {name!r}{nearest(name, GENERATORS)}: there are {', '.join(GENERATORS)}"
            )
    found = [View()]
    for view in found:  # grows during the loop: breadth first
        for name in names:
            if (next_ := view.then(GENERATORS[name])) not in found:
                found.append(next_)
    return found[:count]


def _axes(axes: Iterable[int]) -> Axes:
    z, y, x = axes
    return z, y, x


def _flips(flips: Iterable[bool]) -> Flips:
    z, y, x = flips
    return z, y, x
