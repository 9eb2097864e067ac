"""Predictions for images without labels: a table, and images in the geometry of the files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from medtrain import Run
from medtrain.errors import DataError
from torch import Tensor

from medtrain_plugins.brain.data.inputs import (
    Named,
    Opened,
    find_images,
    open_image,
    parts_of,
    to_file_geometry,
    write_nifti,
)
from medtrain_plugins.brain.model.inference import put_together
from medtrain_plugins.brain.model.model import DENSE, VolumeModel, as_model
from medtrain_plugins.brain.model.saliency import Request, explain
from medtrain_plugins.brain.options import BrainOptions


def predict_images(run: Run, source: Any, options: BrainOptions) -> pd.DataFrame:
    """One row per image: `sample_id`, `participant_id`, `session_id`, and the prediction of the task.

    `predicted` and `probability_<class>`; `prediction`; or `file`, a NIfTI in the geometry of the input: labels with
    `volume_<label>` in mm^3, or the reconstruction with its mean squared error `mse`. source: an image file, a folder
    of DICOM slices, a BIDS or CAPS tree; or a `saliency.Request`.
    """
    model = as_model(run.model, options).to(run.device).eval()
    if isinstance(source, Request):
        return explain(model, source, options, run.device)
    out = options.output_dir or (run.maps.path if run.maps else Path()) / "predictions"
    rows = []
    for named in find_images(Path(source), options):
        opened = open_image(named.path, options)
        try:
            result = run_image(model, opened.image, options, run.device)
        except RuntimeError as error:
            shape = " x ".join(map(str, opened.image.shape))
            raise DataError(f"{named.path}: an image of {shape} does not fit the network: {error}") from None
        ids = {"sample_id": named.sample_id, "participant_id": named.participant_id, "session_id": named.session_id}
        rows.append(ids | predict_row(result, named, opened, options, out))
    return pd.DataFrame(rows)


def run_image(model: VolumeModel, image: Tensor, options: BrainOptions, device: torch.device) -> Tensor:
    """The model's result for a whole image (C, D, H, W), as on a batch of one.

    For a network trained on parts, the results of the parts are averaged: probabilities (returned as logarithms),
    numbers and images.
    """
    with torch.no_grad():
        if options.extraction.kind == "image":
            whole: Tensor = model({"image": image[None].to(device)})[model.output][0]
            return whole.float().cpu()
        results, places = [], []
        for part, place in parts_of(image, options):
            result = model({"image": part[None].to(device)})[model.output][0].float().cpu()
            results.append(result)
            places.append(place)
    if options.task not in DENSE:
        return model.inference.mean([result[None] for result in results])[0]
    if options.task == "segmentation":
        results = [result.softmax(dim=0) for result in results]
        return put_together(results, places, image.shape[1:]).log()
    return put_together(results, places, image.shape[1:])


def predict_row(result: Tensor, named: Named, opened: Opened, options: BrainOptions, out: Path) -> dict[str, Any]:
    """The columns of an image's row; images are written to the folder `out`."""
    if options.task == "regression":
        return {"prediction": float(result)}
    if options.task == "classification":
        chances = result.softmax(dim=0).tolist()
        best = int(chances[1] >= options.threshold) if len(chances) == 2 else int(np.argmax(chances))
        said = {f"probability_{name}": value for name, value in zip(options.classes, chances, strict=True)}
        return {"predicted": options.classes[best], **said}
    if options.task == "reconstruction":
        mse = float((result - opened.image).square().mean())
        path = out / f"{named.sample_id}_reconstruction.nii.gz"
        write_nifti(path, to_file_geometry(result.numpy(), opened).astype(np.float32), opened.file_affine)
        return {"mse": mse, "file": str(path)}
    probability = to_file_geometry(result.softmax(dim=0).numpy(), opened)
    labels = probability.argmax(axis=0).astype(np.uint8 if len(probability) <= 256 else np.int32)
    path = out / f"{named.sample_id}_dseg.nii.gz"
    write_nifti(path, labels, opened.file_affine)
    voxel = abs(float(np.linalg.det(opened.file_affine[:3, :3])))
    counts = np.bincount(labels.ravel(), minlength=len(options.classes))
    volumes = {f"volume_{name}": float(counts[i] * voxel) for i, name in enumerate(options.classes) if i}
    return {"file": str(path), **volumes}
