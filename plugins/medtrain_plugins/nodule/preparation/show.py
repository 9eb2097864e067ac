"""`medtrain data show nodule`: a scan and its nodules as PNG panels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from medtrain.errors import DataError
from medtrain.rundir import replace_file

from medtrain_plugins.imaging.volume import Geometry
from medtrain_plugins.nodule.scans.intensity import Intensity
from medtrain_plugins.nodule.scans.manifest import ManifestRow, Nodule

Array = npt.NDArray[Any]

# The axis across a plane, and the axes that run down and to the right in the figure.
_PLANES = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (2, 0, 1)}
_CLOSE_MM = 50.0
# Diameter that is drawn for a nodule of unknown size.
_UNMEASURED_MM = 5.0


def show_scan(
    array: Array,
    geometry: Geometry,
    nodules: Sequence[Nodule],
    out: Path,
    stem: str,
    *,
    window: Intensity | None = None,
    irrelevant: Sequence[Nodule] = (),
) -> list[Path]:
    """Writes PNG panels to the folder `out`: an overview, and one for each nodule; returns their paths.

    array: (Z, Y, X) HU. Nodules are circled in red, irrelevant findings in yellow, where the plane cuts them. The
    orientation is radiological: the patient's right is on the left, the head is up. Raises DataError if the folder
    cannot be written.
    """
    window = window or Intensity()
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = [_overview(array, geometry, nodules, irrelevant, window, out / f"{stem}_overview.png")]
        paths += [
            _close_up(array, geometry, nodule, nodules, irrelevant, window, out / f"{stem}_nodule{number}.png")
            for number, nodule in enumerate(nodules, start=1)
        ]
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written to ({error.strerror or error}); name another folder with --out"
        ) from None
    return paths


def show_row(row: ManifestRow, out: Path, window: Intensity | None = None) -> list[Path]:
    """The panels of a prepared scan; as `show_scan`."""
    return show_scan(
        row.open(), row.geometry, row.nodules, out, Path(row.image).stem, window=window, irrelevant=row.irrelevant
    )


def _overview(
    array: Array,
    geometry: Geometry,
    nodules: Sequence[Nodule],
    irrelevant: Sequence[Nodule],
    window: Intensity,
    path: Path,
) -> Path:
    """The three whole planes through the first nodule, or through the middle of the scan."""
    centre = np.array(nodules[0].voxel) if nodules else (np.array(array.shape) - 1) / 2
    figure, axes = _figure()
    for axis, (plane, order) in zip(axes, _PLANES.items(), strict=True):
        _draw(axis, array, geometry, order, centre, window, nodules, irrelevant)
        axis.set_title(plane)
    known = f"{len(nodules)} nodules" if len(nodules) != 1 else "1 nodule"
    figure.suptitle(f"{path.stem.removesuffix('_overview')}: {known}", fontsize=8)
    return _save(figure, path)


def _close_up(
    array: Array,
    geometry: Geometry,
    nodule: Nodule,
    nodules: Sequence[Nodule],
    irrelevant: Sequence[Nodule],
    window: Intensity,
    path: Path,
) -> Path:
    figure, axes = _figure()
    half = _CLOSE_MM / 2 / geometry.spacing
    for axis, (plane, order) in zip(axes, _PLANES.items(), strict=True):
        _draw(axis, array, geometry, order, np.array(nodule.voxel), window, nodules, irrelevant)
        down, right = order[1], order[2]
        axis.set_xlim(nodule.voxel[right] - half[right], nodule.voxel[right] + half[right])
        low, high = nodule.voxel[down] - half[down], nodule.voxel[down] + half[down]
        axis.set_ylim(*((low, high) if down == 0 else (high, low)))
        axis.set_title(plane)
    x, y, z = nodule.world
    size = "size unknown" if nodule.diameter_mm is None else f"{nodule.diameter_mm:.1f} mm"
    figure.suptitle(f"{nodule.id}: {size} at {x:.1f}, {y:.1f}, {z:.1f} mm (LPS)", fontsize=8)
    return _save(figure, path)


def _draw(
    axis: Any,
    array: Array,
    geometry: Geometry,
    order: tuple[int, int, int],
    centre: Array,
    window: Intensity,
    nodules: Sequence[Nodule],
    irrelevant: Sequence[Nodule],
) -> None:
    through, down, right = order
    index = int(np.clip(np.rint(centre[through]), 0, array.shape[through] - 1))
    plane = np.take(array, index, axis=through)
    spacing = geometry.spacing
    low, high = window.target
    axis.imshow(
        window(plane),
        cmap="gray",
        vmin=low,
        vmax=high,
        # Up is the head, where indices grow; down is the back.
        origin="lower" if down == 0 else "upper",
        aspect=spacing[down] / spacing[right],
        interpolation="nearest",
    )
    from matplotlib.patches import Ellipse

    for findings, colour in ((irrelevant, "yellow"), (nodules, "red")):
        for one in findings:
            radius = (one.diameter_mm or _UNMEASURED_MM) / 2
            off = abs(one.voxel[through] - index) * spacing[through]
            if off > max(radius, spacing[through] / 2):
                continue
            cut = max(np.sqrt(max(radius**2 - off**2, 0.0)), 1.0)
            at = one.voxel[right], one.voxel[down]
            axis.add_patch(
                Ellipse(
                    at, 2 * cut / spacing[right], 2 * cut / spacing[down], fill=False, edgecolor=colour, linewidth=0.8
                )
            )
    axis.set_axis_off()


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4), layout="constrained")
    return figure, figure.subplots(1, 3)


def _save(figure: Any, path: Path) -> Path:
    with replace_file(path) as aside:
        figure.savefig(aside, dpi=120, format="png")
    return path
