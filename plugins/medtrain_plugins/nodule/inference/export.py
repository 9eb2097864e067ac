"""A trained detector as an ONNX file.

It takes windows of a scan, `image` (batch, 1, D, H, W) float32 of the run's window size, with values mapped by the
run's intensity window, and returns one map per head as inference uses them: probabilities of `heatmap`, `triage` and
`segmentation`, `offset` in voxels, logarithms of diameters in mm. The sliding window, blending and the search for peaks
are not in the file. Its metadata has the facts a user needs, as JSON under the key `medtrain`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from medtrain import Run, __version__
from medtrain.errors import ExportError
from medtrain.protocols import Check
from torch import Tensor, nn

from medtrain_plugins.common.onnx_file import OPSET, open_onnx, write_onnx
from medtrain_plugins.nodule.evaluation.report import LIMITS
from medtrain_plugins.nodule.inference.sliding_window import activate, stride_of
from medtrain_plugins.nodule.options import PivotOptions

INPUT = "image"
BATCH_SIZES = (1, 2, 3)
TOLERANCE = 1e-4


class _Maps(nn.Module):
    """The detector for other tools: a tensor in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(activate(self.model(image)).values())


def export_detector(
    run: Run, options: PivotOptions, format: str, path: Path, check: Check | None
) -> dict[str, Any] | None:
    """Writes the detector of a run as ONNX; None for other formats. Raises ExportError if its maps differ."""
    if format != "onnx":
        return None
    model = run.model.eval()
    size = options.inference.window or list(options.sampling.patch_size)
    shape = [1, *(size * 3 if len(size) == 1 else size)]
    with torch.no_grad():
        maps = activate(model(torch.zeros(1, *shape)))
    about = {
        "plugin": "pivot",
        "input": {"name": INPUT, "shape": ["batch_size", *shape], "dtype": "float32", "values": "0 to 1"},
        "window_hu": list(options.window),
        "spacing_zyx_mm": list(options.voxel_mm),
        "outputs": {name: ["batch_size", *values.shape[1:]] for name, values in maps.items()},
        "output_stride": stride_of(model),
        "checkpoint": {"name": run.checkpoint.name if run.checkpoint else None, "epoch": run.epoch, "step": run.step},
        "versions": {"medtrain": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
        "limits": LIMITS,
    }
    network = _Maps(model)
    write_onnx(network, torch.zeros(2, *shape), path, about, INPUT, list(maps))
    facts = {"opset": OPSET, "input": [INPUT, "batch_size", *shape], "output": list(maps)}
    return {**facts, **_compare(network, list(maps), shape, path, check)}


def _compare(network: nn.Module, names: list[str], shape: list[int], path: Path, check: Check | None) -> dict[str, Any]:
    """Compares the maps of random windows of both models."""
    if check is None:
        return {"checked": False, "notes": ["Not compared with the trained model."]}
    running, largest = open_onnx(path), 0.0
    generator = torch.Generator().manual_seed(0)
    for size in BATCH_SIZES:
        image = torch.rand(size, *shape, generator=generator)
        with torch.no_grad():
            wanted = network(image)
        for name, ours, theirs in zip(names, wanted, running.run(names, {INPUT: image.numpy()}), strict=True):
            difference = float((ours - torch.from_numpy(theirs)).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
                raise ExportError(
                    f"the ONNX model differs from the trained one: {name} by {difference:.2g} with {size} windows, "
                    f"more than {TOLERANCE:.0e}; nothing was written"
                )
            largest = max(largest, difference)
    sizes = ", ".join(map(str, BATCH_SIZES))
    note = f"Equal to the trained model within {largest:.1g} at batch sizes {sizes}, on windows of drawn values."
    return {"checked": True, "largest_difference": largest, "notes": [note]}
