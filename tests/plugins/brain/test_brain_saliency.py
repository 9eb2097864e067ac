from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from medtrain.errors import UsageError
from medtrain_plugins.brain.model.saliency import Request, attribute, explain, find_layer
from medtrain_plugins.brain.options import BrainOptions
from medtrain_plugins.brain.tasks import build_model

SHAPE = [1, 12, 10, 8]
AFFINE = np.array([[-2.0, 0, 0, 30], [0, 2.5, 0, -20], [0, 0, 3, 7], [0, 0, 0, 1]])


def a_model(**options: Any) -> tuple[Any, BrainOptions]:
    torch.manual_seed(0)
    values = {"input_shape": SHAPE, "classes": ["CN", "AD"], "network_options": {"hidden": [8, 4]}} | options
    chosen = BrainOptions.model_validate(values)
    return build_model(chosen).eval(), chosen


def an_image(path: Path) -> Path:
    array = np.random.default_rng(0).random(SHAPE[1:], dtype=np.float32) * 500
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return path


@pytest.mark.parametrize("standardize", [True, False])
def test_integrated_gradients_add_up_to_the_difference_of_the_outputs(standardize: bool) -> None:
    model, _ = a_model(standardize=standardize)
    image = torch.randn(2, *SHAPE) * 3 + 5
    found = attribute(model, image, 1, "integrated_gradients")
    assert found.shape == (2, 1, *SHAPE[1:])
    with torch.no_grad():
        seen = model.standardized(image)[0]
        difference = model.module(seen)[:, 1] - model.module(torch.zeros_like(seen))[:, 1]
    torch.testing.assert_close(found.flatten(1).sum(dim=1), difference, rtol=0.1, atol=0.02)


def test_they_show_where_the_network_looks() -> None:
    class Probe(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            inside = image[:, 0, 2:4, 3:5, 1:3].flatten(1).sum(dim=1)
            return torch.stack([-inside, inside], dim=1)

    model, _ = a_model(standardize=False)
    model.module = Probe()
    found = attribute(model, torch.rand(1, *SHAPE), 1, "integrated_gradients")[0, 0]
    inside = torch.zeros_like(found, dtype=torch.bool)
    inside[2:4, 3:5, 1:3] = True
    assert (found[inside] > 0).all()
    assert not found[~inside].any()


def test_grad_cam_is_of_the_images_size_and_of_the_chosen_layer() -> None:
    model, _ = a_model()
    image = torch.randn(1, *SHAPE)
    last, early = (attribute(model, image, 1, "gradcam", layer) for layer in ("", "features.4"))
    assert last.shape == early.shape == (1, 1, *SHAPE[1:])
    assert (last >= 0).all()
    assert not torch.allclose(last, early)
    assert find_layer(model.module) is model.module.features[16]
    with pytest.raises(UsageError, match=r"features\.16"):
        find_layer(model.module, "feature.16")
    with pytest.raises(UsageError, match="integrated_gradients"):
        find_layer(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"canonical": True},
        {"transforms": [{"name": "Flip", "spatial_axis": 1}]},
        {"extraction": {"kind": "patch", "size": [12, 5, 8], "overlap": [0, 1, 0]}, "input_shape": [1, 12, 5, 8]},
        {"inference": {"slice_axis": 2}},
        {"inference": {"window": [12, 10, 4]}},
    ],
)
def test_maps_come_in_the_geometry_of_the_file(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, options = a_model(**changes)
    request = Request(an_image(tmp_path / "head.nii.gz"), tmp_path / "out", target="AD")
    table = explain(model, request, options, torch.device("cpu"))
    assert table["target"].tolist() == ["AD"]
    found = nibabel.load(table["map"][0])
    np.testing.assert_allclose(found.affine, AFFINE)
    assert found.shape == tuple(SHAPE[1:])
    assert np.abs(found.get_fdata()).max() > 0
    assert Path(table["picture"][0]).read_bytes().startswith(b"\x89PNG")


def test_a_flipped_image_has_the_flipped_map(tmp_path: Path) -> None:
    """What a transform turned is turned back: the map of a flip lies where that of the flipped network would."""
    model, plain = a_model()
    flipped = plain.model_copy(update={"transforms": [{"name": "Flip", "spatial_axis": 1}]})
    path = an_image(tmp_path / "head.nii.gz")
    table = explain(model, Request(path, tmp_path / "out", target="AD"), flipped, torch.device("cpu"))
    array = np.asarray(nibabel.load(path).dataobj)[:, ::-1].copy()
    expected = attribute(model, torch.from_numpy(array)[None, None], 1, "integrated_gradients")[0, 0].numpy()[:, ::-1]
    np.testing.assert_allclose(nibabel.load(table["map"][0]).get_fdata(), expected, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_explained_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = a_model()
    path, device = an_image(tmp_path / "head.nii.gz"), torch.device("cpu")
    with pytest.raises(UsageError, match="did you mean 'AD'"):
        explain(model, Request(path, tmp_path, target="ADD"), options, device)
    segmentation = options.model_copy(update={"task": "segmentation"})
    with pytest.raises(UsageError, match="every voxel"):
        explain(model, Request(path, tmp_path), segmentation, device)
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(UsageError, match=r"pip install 'medtrain\[saliency\]'"):
        explain(model, Request(path, tmp_path), options, device)
