"""A network applied to a whole scan in overlapping, blended windows, and the candidates in its maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from medtrain import TensorModel
from medtrain.errors import ConfigError, DataError
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

from medtrain_plugins.nodule.inference.calibration import Calibration
from medtrain_plugins.nodule.inference.peaks import Candidate, decode
from medtrain_plugins.nodule.inference.tta import View, make_views
from medtrain_plugins.nodule.model.heads import TASKS
from medtrain_plugins.nodule.options import InferenceOptions

Axes = tuple[int, int, int]
Maps = dict[str, Tensor]
Blend = Literal["gaussian", "constant"]

PROBABILITIES = ("heatmap", "triage", "segmentation")
STRIDE = "output_stride"
SIGMA = 0.125  # standard deviation, as a share of the window
FLOOR = 1e-3
STEPS = 2.0**20  # steps of a probability that tell peaks apart


@dataclass(frozen=True)
class Grid:
    """Windows that cover a scan. before, after: voxels added on its sides; starts: in the padded scan."""

    before: Axes
    after: Axes
    starts: tuple[Axes, ...]

    @property
    def padding(self) -> list[int]:
        """For torch's `pad`: the last axis first."""
        return [n for pair in reversed(list(zip(self.before, self.after, strict=True))) for n in pair]


def window_grid(
    shape: Sequence[int],
    window: Sequence[int],
    step: Sequence[int],
    border: Sequence[int] = (0, 0, 0),
    multiple: int = 1,
) -> Grid:
    """The fewest windows at multiples of `step` that cover `shape` and `border` voxels on each side of it.

    Excess voxels are shared between both sides, with an odd voxel after the scan. multiple: the voxels before the scan
    are a multiple of it (the output stride, which must then also divide shape, window and step).
    """
    before, after, starts = [], [], []
    for size, length, stride, beyond in zip(shape, window, step, border, strict=True):
        if stride > length:
            raise ValueError(f"windows of {length} voxels every {stride} leave gaps")
        count = math.ceil(max(size + 2 * beyond - length, 0) / stride)
        extra = length + count * stride - size
        first = extra // 2 // multiple * multiple
        before.append(first)
        after.append(extra - first)
        starts.append(range(0, count * stride + 1, stride))
    return Grid(_axes(before), _axes(after), tuple(_axes(start) for start in itertools.product(*starts)))


def window_weights(window: Sequence[int], blend: Blend = "gaussian") -> Tensor:
    """The weight of each voxel of a window, float32 (D, H, W).

    gaussian: centred on (n - 1) / 2, with an eighth of the window as standard deviation, and never below 1e-3, so that
    voxels covered only by the edge of one window still get their value.
    """
    weights = torch.ones(1)
    for length in window:
        line = torch.ones(length)
        if blend == "gaussian":
            distance = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
            line = torch.exp(-0.5 * (distance / (SIGMA * length)) ** 2).float()
        weights = weights[..., None] * line
    return weights[0].clamp(min=FLOOR)


class Blender:
    """The mean of overlapping parts of maps, weighted voxel by voxel.

    shape: of the whole maps (D, H, W). weights: of the voxels of every part.
    """

    def __init__(self, shape: Sequence[int], weights: Tensor) -> None:
        self.shape, self.weights = _axes(shape), weights
        self.totals: Maps = {}
        self.weight = weights.new_zeros(self.shape)

    def add(self, parts: Mapping[str, Tensor], start: Sequence[int]) -> None:
        """Adds one window's parts (C, d, h, w) of all maps at its first voxel."""
        place = _place(start, self.weights.shape)
        for name, part in parts.items():
            if name not in self.totals:
                self.totals[name] = self.weights.new_zeros((len(part), *self.shape))
            self.totals[name][(slice(None), *place)].addcmul_(part, self.weights)
        self.weight[place] += self.weights

    def means(self) -> Maps:
        """The maps (C, D, H, W); 0 where there was no part. Ends the blending."""
        factor = torch.where(self.weight > 0, self.weight, 1.0).reciprocal_()
        return {name: total.mul_(factor) for name, total in self.totals.items()}


def slide(
    network: Callable[[Tensor], Mapping[str, Tensor]],
    image: Tensor,
    window: Sequence[int],
    *,
    overlap: float = 0.5,
    border: float = 0.0,
    blend: Blend = "gaussian",
    batch_size: int = 2,
    device: torch.device | None = None,
    accumulate_on: torch.device | None = None,
    multiple: int = 1,
    pad_value: float = 0.0,
    inside: Tensor | None = None,
) -> Maps:
    """The maps of a whole image (C, D, H, W), float32, by name.

    network: windows (B, C, *window) -> maps (B, K, *window / s), s of each map 1 or `multiple`, which must divide the
    image. Windows overlap by the share `overlap`; they reach at least a share `border` of a window beyond the image,
    where the value is `pad_value`. batch_size: windows at a time. inside (D, H, W): windows without a voxel of it are
    skipped; maps are 0 where only skipped windows are.
    """
    shape = _axes(image.shape[1:])
    device = device or image.device
    step = [max(int(length * (1 - overlap)) // multiple * multiple, multiple) for length in window]
    grid = window_grid(shape, window, step, [math.ceil(border * length) for length in window], multiple)
    padded = functional.pad(image, grid.padding, value=pad_value)
    starts = list(grid.starts)
    if inside is not None:
        where = functional.pad(inside, grid.padding)
        starts = [start for start in starts if where[_place(start, window)].any()]
    if not starts:
        raise ValueError("no window has a voxel of `inside`")
    summing_on = accumulate_on or device
    blenders: dict[int, Blender] = {}
    scales: dict[str, int] = {}
    for first in range(0, len(starts), batch_size):
        group = starts[first : first + batch_size]
        batch = torch.stack([padded[(slice(None), *_place(start, window))] for start in group]).to(device)
        found = {name: values.to(summing_on, torch.float32) for name, values in network(batch).items()}
        if not blenders:
            scales = {name: _scale(name, values, window, multiple) for name, values in found.items()}
            for scale in set(scales.values()):
                weights = window_weights([length // scale for length in window], blend).to(summing_on)
                blenders[scale] = Blender([length // scale for length in padded.shape[1:]], weights)
        for scale, blender in blenders.items():
            for number, start in enumerate(group):
                parts = {name: values[number] for name, values in found.items() if scales[name] == scale}
                blender.add(parts, [at // scale for at in start])
    maps: Maps = {}
    for scale, blender in blenders.items():
        own = _place([a // scale for a in grid.before], [n // scale for n in shape])
        maps |= {name: values[(slice(None), *own)] for name, values in blender.means().items()}
    return {name: maps[name] for name in scales}


def compute_maps(
    model: nn.Module,
    array: ArrayLike | Tensor,
    options: InferenceOptions | None = None,
    *,
    window: Sequence[int] = (),
    device: torch.device | None = None,
    amp: torch.dtype | None = None,
    pad_value: float = 0.0,
    inside: ArrayLike | None = None,
) -> Maps:
    """The maps of a prepared scan: probabilities `heatmap`, `triage`, `segmentation`; `offset`, `log_diameter`.

    Only the heads of the detector; (C, d, h, w) on the output grid, the segmentation on the scan's grid.

    model: the detector, or a `TensorModel` around it, wrapped or not; it is in eval mode here, and as before
    afterwards. array: (D, H, W), after the intensity transform. window: zyx, if the options have none. amp: type of
    autocast. pad_value: of air. inside: (D, H, W) bool, where to search; an empty mask is ignored. Probabilities, not
    logits, are averaged over windows and views.
    """
    options = options or InferenceOptions.model_validate({})
    device = device or next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    stride = stride_of(model)
    image = torch.as_tensor(np.asarray(array) if not isinstance(array, Tensor) else array, dtype=torch.float32)
    if image.dim() != 3 or min(image.shape) < 1:
        raise DataError(f"a scan has three axes with voxels, this has the shape {tuple(image.shape)}")
    shape = _axes(image.shape)
    # Views of the scan and of the maps match only if the stride divides the scan.
    ends = [n for length in reversed(shape) for n in (0, -length % stride)]
    image = functional.pad(image, ends, value=pad_value)[None]
    mask = None if inside is None else np.asarray(inside, dtype=bool)
    where = functional.pad(torch.from_numpy(mask), ends) if mask is not None and mask.any() else None
    length = _window(options.window or window, stride)

    key = next((layer.input for layer in _layers(model) if isinstance(layer, TensorModel)), None)

    def network(batch: Tensor) -> Maps:
        with torch.autocast(batch.device.type, dtype=amp, enabled=amp is not None):
            found = model(batch) if key is None else model({key: batch})
        return activate(found)

    def look(view: View) -> Maps:
        found = slide(
            network,
            view.apply(image),
            length,
            overlap=options.overlap,
            border=options.border,
            blend=options.blend,
            batch_size=options.batch_size,
            device=device,
            accumulate_on=torch.device("cpu") if options.accumulate_on == "cpu" else device,
            multiple=stride,
            pad_value=pad_value,
            inside=None if where is None else view.apply(where),
        )
        return view.invert_maps(found)

    views = make_views(options.tta, options.tta_count)
    with evaluating(model), torch.inference_mode():
        maps = look(views[0])
        for view in views[1:]:
            for name, values in look(view).items():
                maps[name] += values
        for name, values in maps.items():
            maps[name] = _crop(values.div_(len(views)) if len(views) > 1 else values, shape, image.shape[1])
    return maps


def detect(
    model: nn.Module,
    array: ArrayLike | Tensor,
    spacing: ArrayLike,
    options: InferenceOptions | None = None,
    **settings: Any,
) -> list[Candidate]:
    """The candidates of a prepared scan, most suspicious first. spacing: zyx mm; all else as in `compute_maps`."""
    options = options or InferenceOptions.model_validate({})
    return find_candidates(compute_maps(model, array, options, **settings), spacing, options, stride_of(model))


def find_candidates(
    maps: Mapping[str, Tensor],
    spacing: ArrayLike,
    options: InferenceOptions,
    stride: int = 1,
    calibration: Calibration | None = None,
) -> list[Candidate]:
    """The candidates in maps: peaks, one per nodule, calibrated, with at least the threshold.

    calibration: default: that of the options, if they name one.
    """
    # Blending leaves rounding errors, which would break up the flat top of a saturated sigmoid.
    heatmap = (maps["heatmap"] * STEPS).round_().div_(STEPS)
    found = decode(
        {**maps, "heatmap": heatmap},
        spacing,
        stride=stride,
        kernel=options.kernel,
        min_confidence=options.min_confidence,
        top_k=options.top_k,
        merge=options.merge,
    )
    if calibration is None and options.calibration is not None:
        calibration = Calibration.read(options.calibration)
    if calibration is not None and found:
        scores = calibration.apply_to_probabilities([candidate.confidence for candidate in found])
        found = [replace(one, confidence=float(score)) for one, score in zip(found, scores, strict=True)]
    return [candidate for candidate in found if candidate.confidence >= options.threshold]


def activate(found: Any) -> Maps:
    """A detector's output as plain maps; probabilities are computed by the sigmoid, in float32."""
    if isinstance(found, Tensor):
        found = {"heatmap": found}
    given = found._asdict() if hasattr(found, "_asdict") else found
    maps = {name: given[name].float() for name in TASKS if given.get(name) is not None}
    return {name: values.sigmoid() if name in PROBABILITIES else values for name, values in maps.items()}


def stride_of(model: nn.Module) -> int:
    """Voxels of the scan per voxel of the maps, along each axis."""
    return next((int(getattr(layer, STRIDE)) for layer in _layers(model) if hasattr(layer, STRIDE)), 1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """All modules in eval mode (dropout, batch norm); afterwards each has its previous mode."""
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in was_training:
            module.training = True


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    """The model and the modules it wraps: `TensorModel`, DDP, torch.compile."""
    layer: Any = model
    while isinstance(layer, nn.Module):
        yield layer
        layer = getattr(layer, "_orig_mod", None) or getattr(layer, "module", None)


def _window(window: Sequence[int], stride: int) -> Axes:
    given = list(window)
    if len(given) not in (1, 3) or min(given) < 1:
        raise ConfigError(f"inference.window: {given}: give one number of voxels, or three for z, y, x")
    z, y, x = given * 3 if len(given) == 1 else given
    return _axes(math.ceil(length / stride) * stride for length in (z, y, x))


def _scale(name: str, found: Tensor, window: Sequence[int], multiple: int) -> int:
    """Voxels of the window per voxel of its map."""
    size = list(found.shape[2:])
    for scale in (1, multiple):
        if size == [length // scale for length in window]:
            return scale
    raise ConfigError(
        f"the network's {name} has {size} voxels for a window of {list(window)}, at output stride {multiple}"
    )


def _place(start: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(at, at + length) for at, length in zip(start, window, strict=True))


def _crop(values: Tensor, shape: Axes, padded: int) -> Tensor:
    """Removes the padding at the ends of the scan. padded: voxels along z with padding."""
    scale = padded // values.shape[1]
    z, y, x = (math.ceil(length / scale) for length in shape)
    return values[:, :z, :y, :x]


def _axes(values: Iterable[int]) -> Axes:
    z, y, x = (int(value) for value in values)
    return z, y, x
