"""Runs on parts of images, and runs whose results are images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from brain_runs import SIZE, configured, trained
from medtrain import Trainer
from medtrain.config import RunConfig
from medtrain_plugins.brain.synth import synthesize

TURN = [[2, 1], [0, -1], [1, -1]]  # axes of a file in another order, two of them backwards


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bids") / "tree"
    synthesize(folder, 24, sessions=2, sites=2, size=SIZE, variant="trivial")
    return folder


@pytest.mark.parametrize(
    "extraction", [{"kind": "slice", "borders": 6}, {"kind": "patch", "size": [16, 16, 8], "overlap": [0, 0, 0]}]
)
def test_parts_vote_alike_in_evaluation_and_prediction(tree: Path, tmp_path: Path, extraction: dict[str, Any]) -> None:
    from medtrain_plugins.brain.evaluation.metrics import image_rows

    trainer = trained(tmp_path / "run", tree, extraction=extraction)
    result = trainer.evaluate("test", details=False)
    images = image_rows(result.rows, ("probability",))
    assert len(images["label"]) < len(result.rows["label"])
    table = trainer.predict(tree).set_index(["participant_id", "session_id"])
    for i, key in enumerate(zip(images["participant_id"], images["session_id"], strict=True)):
        assert table.loc[key, "probability_AD"] == pytest.approx(images["probability"][i, 0], rel=1e-4)


def test_a_segmentation_is_written_in_the_geometry_of_its_input(tree: Path, tmp_path: Path) -> None:
    options = {"channels": [4, 8], "strides": [2]}
    layers = {
        "task": "segmentation",
        "network": "UNet",
        "classes": ["background", "csf", "gray", "white"],
        "canonical": True,
        "surface_metrics": False,
    }
    trainer = Trainer(tmp_path / "run", plugins=["brain"], config=segmentation(tree, options, layers))
    trainer.train()
    trainer = Trainer.from_maps(tmp_path / "run", assignments=[f"brain.output_dir={tmp_path / 'out'}"])
    result = trainer.evaluate("test", details=False)
    assert result.metrics["dice"] > 0.3
    assert "brain_images.png" in {path.name for path in trainer.report(tmp_path / "report").glob("plots/*")}

    # The same head lying otherwise in the file: the segmentation lies as it does.
    source = next(tree.glob("sub-*/ses-M000/anat/*T1w.nii.gz"))
    image = nibabel.load(source)
    turned = image.as_reoriented(np.array(TURN))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    rows = [trainer.predict(path).iloc[0] for path in (source, tmp_path / "turned.nii.gz")]
    straight, back = (nibabel.load(row["file"]) for row in rows)
    np.testing.assert_allclose(straight.affine, image.affine, atol=1e-4)
    np.testing.assert_allclose(back.affine, turned.affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(straight.as_reoriented(np.array(TURN)).dataobj), np.asarray(back.dataobj))
    assert rows[0]["volume_gray"] == pytest.approx(rows[1]["volume_gray"])


def segmentation(tree: Path, network_options: dict[str, Any], options: dict[str, Any]) -> RunConfig:
    config = configured(tree, 3, **options)
    config.options("brain").network_options = network_options
    config.optimization.learning_rate = 2e-2
    return config


def test_reconstructions_and_augmentations(tree: Path, tmp_path: Path) -> None:
    config = configured(
        tree,
        task="reconstruction",
        network="AutoEncoder",
        augmentations=[{"name": "RandFlip", "prob": 0.5, "spatial_axis": 0}],
        output_dir=str(tmp_path / "out"),
        transforms=["ScaleIntensity", {"name": "CenterSpatialCrop", "roi_size": 8}],
    )
    config.options("brain").network_options = {"channels": [4, 8], "strides": [2, 2]}
    trainer = Trainer(tmp_path / "run", plugins=["brain"], config=config)
    trainer.train()
    source = next(tree.glob("sub-*/ses-M000/anat/*T1w.nii.gz"))
    row = trainer.predict(source).iloc[0]
    made, image = nibabel.load(row["file"]), nibabel.load(source)
    assert made.shape == image.shape
    found = made.get_fdata()
    # What was cropped away comes back as nothing, in its place.
    inside = np.zeros(image.shape, dtype=bool)
    inside[4:12, 4:12, 4:12] = True
    assert not found[~inside].any()
    assert found[inside].any()


def test_random_patches_in_training_and_windows_over_whole_images(tree: Path, tmp_path: Path) -> None:
    options = {
        "task": "segmentation",
        "network": "UNet",
        "classes": ["background", "csf", "gray", "white"],
        "surface_metrics": False,
        "augmentations": [{"name": "RandSpatialCrop", "roi_size": [8, 8, 8], "random_size": False}],
        "inference": {"window": [8], "flips": [0]},
    }
    config = segmentation(tree, {"channels": [4, 8], "strides": [2]}, options)
    config.optimization.num_epochs = 1
    trainer = Trainer(tmp_path / "run", plugins=["brain"], config=config)
    trainer.train()
    result = trainer.evaluate("test", details=False)
    assert result.rows["dice"].shape == (12, 3)
    assert result.metrics["dice"] > 0
