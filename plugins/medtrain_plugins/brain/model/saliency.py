"""Which voxels a decision depends on: integrated gradients and Grad-CAM, as NIfTI in the input's geometry and PNG."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from medtrain.errors import UsageError, nearest
from torch import Tensor, nn

from medtrain_plugins.brain.data.inputs import Array, find_images, open_image, parts_of, to_file_geometry, write_nifti
from medtrain_plugins.brain.model.inference import put_together
from medtrain_plugins.brain.model.model import DENSE, VolumeModel
from medtrain_plugins.brain.options import BrainOptions

Method = Literal["integrated_gradients", "gradcam"]
STEPS = 32  # steps of the path of integrated gradients


@dataclass(frozen=True)
class Request:
    """What to explain.

    source: as for predictions. out: output folder. target: class by name; default: the predicted one. layer: of
    Grad-CAM, by its name in the network; default: the last convolution.
    """

    source: Path
    out: Path
    method: Method = "integrated_gradients"
    target: str = ""
    layer: str = ""


def explain(model: VolumeModel, request: Request, options: BrainOptions, device: torch.device) -> pd.DataFrame:
    """One row per image: ids, `target`, and the files `map` (NIfTI) and `picture` (PNG)."""
    if options.task in DENSE:
        raise UsageError(
            f"saliency: a {options.task} network says something of every voxel; there is nothing to explain"
        )
    _require_captum()
    if request.target and request.target not in options.classes:
        known = ", ".join(options.classes) or "none"
        raise UsageError(f"--target {request.target}: no such class{nearest(request.target, options.classes)}: {known}")
    rows = []
    for named in find_images(request.source, options):
        opened = open_image(named.path, options)
        parts = [(part[None].to(device), place) for part, place in parts_of(opened.image, options)]
        target = 0
        if options.task == "classification":
            with torch.no_grad():
                votes = model.inference.mean([model.network(part) for part, _ in parts])
            target = options.classes.index(request.target) if request.target else int(votes.argmax())
        maps = [attribute(model, part, target, request.method, request.layer)[0].cpu() for part, _ in parts]
        whole = put_together(maps, [place for _, place in parts], opened.image.shape[1:])
        found = to_file_geometry(np.nan_to_num(whole.numpy()), opened).astype(np.float32)
        stem = f"{named.sample_id}_{request.method}"
        write_nifti(request.out / f"{stem}.nii.gz", found, opened.file_affine)
        title = f"{named.sample_id}, {options.classes[target] if options.classes else options.label}"
        picture(opened.image[0].numpy(), whole[0].nan_to_num().numpy(), title).savefig(
            request.out / f"{stem}.png", dpi=110, metadata={"Software": None}
        )
        rows.append(
            {
                "sample_id": named.sample_id,
                "participant_id": named.participant_id,
                "session_id": named.session_id,
                "target": options.classes[target] if options.classes else options.label,
                "map": str(request.out / f"{stem}.nii.gz"),
                "picture": str(request.out / f"{stem}.png"),
            }
        )
    return pd.DataFrame(rows)


def attribute(model: VolumeModel, image: Tensor, target: int, method: Method, layer: str = "") -> Tensor:
    """Attributions (B, 1, *size) of the network's output `target` to the voxels of images (B, C, *size).

    integrated_gradients (Sundararajan et al., 2017): signed, summed over channels; from the mean image to this one, so
    they add up to the difference of the outputs. gradcam (Selvaraju et al., 2017): not negative, from a convolution,
    interpolated to the image.
    """
    _require_captum()
    from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam

    model.eval()
    seen = model.standardized(image)[0].detach()
    if method == "integrated_gradients":
        # Standardisation would undo the scaling along the path, so the path starts after it.
        found = IntegratedGradients(model.module).attribute(
            seen, target=target, n_steps=STEPS, internal_batch_size=max(len(seen), 4)
        )
        summed: Tensor = found.sum(dim=1, keepdim=True)
        return summed.float()
    grad_cam = LayerGradCam(model.module, find_layer(model.module, layer))
    found = grad_cam.attribute(seen, target=target, relu_attributions=True)
    mode = "trilinear" if image.dim() == 5 else "bilinear"
    result: Tensor = LayerAttribution.interpolate(found.detach(), tuple(image.shape[2:]), interpolate_mode=mode)
    return result.float()


def find_layer(network: nn.Module, name: str = "") -> nn.Module:
    """A layer of the network by its name; without a name the last convolution. Raises UsageError."""
    convolutions: dict[str, nn.Module] = {
        key: part for key, part in network.named_modules() if isinstance(part, nn.Conv2d | nn.Conv3d)
    }
    if not name:
        if not convolutions:
            raise UsageError("gradcam needs a network with convolutions; use --method integrated_gradients")
        return convolutions[list(convolutions)[-1]]
    parts: dict[str, nn.Module] = dict(network.named_modules())
    if name not in parts:
        known = ", ".join(list(convolutions)[-6:])
        raise UsageError(f"--layer {name}: the network has no such part{nearest(name, parts)}; convolutions: {known}")
    return parts[name]


def picture(image: Array, found: Array, title: str) -> Figure:
    """Three planes through the voxel with the strongest attribution, over the image. Both (D, H, W)."""
    peak = np.unravel_index(int(np.abs(found).argmax()), found.shape)
    limit = float(np.abs(found).max()) or 1.0
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    drawn: Any = None
    for axis, axes in enumerate(figure.subplots(1, 3)):
        plane, strength = (np.take(volume, peak[axis], axis=axis).T for volume in (image, found))
        axes.imshow(plane, cmap="gray", origin="lower")
        # Small attributions are transparent.
        alpha = np.clip(np.abs(strength) / limit, 0, 1) ** 0.5
        drawn = axes.imshow(strength, cmap="coolwarm", origin="lower", alpha=alpha, vmin=-limit, vmax=limit)
        axes.set_title(f"axis {axis}, voxel {peak[axis]}", fontsize=9)
        axes.set_axis_off()
    figure.colorbar(drawn, ax=figure.axes, shrink=0.8)
    figure.suptitle(title, fontsize=10)
    return figure


def _require_captum() -> None:
    from importlib.util import find_spec

    if find_spec("captum") is None:
        raise UsageError("saliency maps need captum: pip install 'medtrain[saliency]'")
