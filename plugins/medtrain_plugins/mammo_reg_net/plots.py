"""Figures of registrations: overlays before and after, displacement fields, and the gain over all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from medtrain.protocols import Rows

Array = npt.NDArray[Any]

COLUMNS = ("current", "previous", "before", "after", "checkerboard", "displacement (pixels)")
SQUARES = 8  # squares of the checkerboard, from top to bottom
ARROWS = 14  # arrows of the displacement field, from top to bottom


def overlay_figure(pairs: list[dict[str, Any]]) -> Figure:
    """One row per pair: both images, red-cyan overlays before and after, a checkerboard, and the displacement field.

    pairs: each with `current`, `previous`, `registered` (H, W) in [0, 1], `flow` (2, H, W) in pixels, rows first, and
    `title`.
    """
    height, width = pairs[0]["current"].shape
    panel = 1.8
    size = (len(COLUMNS) * panel + 0.9, len(pairs) * panel * height / width + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(pairs), len(COLUMNS), squeeze=False)
    for number, (row, pair) in enumerate(zip(panels, pairs, strict=True)):
        white = max(float(np.quantile(pair["current"], 0.998)), float(np.quantile(pair["previous"], 0.998)), 1e-6)
        current, previous, registered = (
            np.clip(pair[name] / white, 0, 1) for name in ("current", "previous", "registered")
        )
        before, after = red_cyan(current, previous), red_cyan(current, registered)
        for axes, picture in zip(
            row, (current, previous, before, after, checkerboard(current, registered)), strict=False
        ):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _draw_flow(figure, row[-1], pair["flow"])
        for axes, name in zip(row, COLUMNS, strict=True):
            axes.set(xticks=[], yticks=[])
            if number == 0:
                axes.set_title(name, fontsize=9)
        row[0].set_ylabel(pair["title"], fontsize=8)
    return figure


def red_cyan(fixed: Array, moved: Array) -> Array:
    """`fixed` in red, `moved` in cyan, (H, W, 3): grey where they agree."""
    return np.stack([fixed, moved, moved], axis=-1)


def checkerboard(fixed: Array, moved: Array) -> Array:
    """Alternating squares of both images, (H, W): edges continue across squares where the images agree."""
    side = max(1, fixed.shape[0] // SQUARES)
    rows, columns = np.indices(fixed.shape) // side
    return np.where((rows + columns) % 2 == 0, fixed, moved)


def gain_figure(rows: Rows) -> Figure:
    """Correlation of every pair, before and after registration."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.subplots()
    before, after = rows["ncc_before"], rows["ncc"]
    low = min(before.min(), after.min())
    limits = (low - 0.04 * (1 - low), 1 + 0.02 * (1 - low))
    axes.plot(limits, limits, color="#6b7280", linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(before, after, "o", color="#1f6aad", markersize=4, alpha=0.6, markeredgewidth=0)
    axes.set(xlim=limits, ylim=limits, aspect="equal", title=f"{(after > before).mean():.0%} of pairs gain")
    axes.set(xlabel="Correlation before", ylabel="Correlation after registration")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    return figure


def _draw_flow(figure: Figure, axes: Any, flow: Array) -> None:
    """Draws the length in colour, and arrows from the current image to the same tissue in the previous one."""
    length = np.hypot(flow[0], flow[1])
    figure.colorbar(axes.imshow(length, cmap="viridis", vmin=0), ax=axes, shrink=0.7)
    step = max(1, flow.shape[1] // ARROWS)
    rows, columns = np.mgrid[step // 2 : flow.shape[1] : step, step // 2 : flow.shape[2] : step]
    dy, dx = flow[:, rows, columns]
    longest = max(float(length.max()), 1e-6) / (1.5 * step)
    axes.quiver(columns, rows, dx, dy, angles="xy", scale_units="xy", scale=longest, color="white", width=0.012)
