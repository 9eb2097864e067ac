from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from medtrain import Trainer
from medtrain.config import Layers, RunConfig
from medtrain.errors import ConfigError, DataError
from medtrain.plugins import Plugins
from medtrain.testing import check_plugin
from medtrain_plugins.brain.synth import synthesize

SIZE = 16
TURN = [[2, 1], [0, -1], [1, -1]]  # axes of a file in another order, two of them backwards


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bids") / "tree"
    synthesize(folder, 24, sessions=2, sites=2, size=SIZE, variant="trivial")
    return folder


def configured(tree: Path, epochs: int = 1, **options: Any) -> RunConfig:
    layers = Layers()
    layers.add(
        {
            "run": {"plugins": ["brain"]},
            "data": {"images": str(tree), "batch_size": 8, "test_fraction": 0.25},
            "optimization": {"num_epochs": epochs, "learning_rate": 2e-3},
            "computational": {"device": "cpu"},
            "plugins": {"brain": {"network_options": {"hidden": [8, 4]}, **options}},
        },
        "test",
    )
    return layers.build(Plugins.of(["brain"]).options())


def trained(path: Path, tree: Path, epochs: int = 1, **options: Any) -> Trainer:
    trainer = Trainer(path, plugins=["brain"], config=configured(tree, epochs, **options))
    trainer.train()
    return Trainer.from_maps(path)


def test_the_plugin_conforms() -> None:
    failed = [finding for finding in check_plugin("brain") if not finding.ok]
    assert not failed


def test_importing_the_plugin_is_light() -> None:
    code = (
        "import sys, medtrain_plugins.brain as b; b.Brain();"
        "heavy = {'torch', 'monai', 'pandas', 'nibabel', 'matplotlib', 'captum'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_small_classifier_needs_no_monai(tree: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['monai'] = None; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from test_brain_plugin import trained; trained(Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "run"), str(tree)], check=True
    )


def test_a_classifier_learns_is_evaluated_by_image_and_predicts(tree: Path, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", tree, epochs=15, classes=["CN", "AD"])
    assert trainer.config.options("brain").input_shape == [1, SIZE, SIZE, SIZE]
    result = trainer.evaluate("test")
    assert result.metrics["balanced_accuracy"] >= 0.9
    assert {"participant_id", "session_id", "label", "probability"} <= set(result.rows)
    folder = trainer.report(tmp_path / "report")
    assert {"brain_roc.png", "brain_confusion.png", "brain_calibration.png"} <= {p.name for p in folder.glob("plots/*")}

    table = trainer.predict(tree)
    assert len(table) == 48
    rows = {f"{p}_{s}": i for i, (p, s) in enumerate(zip(table["participant_id"], table["session_id"], strict=True))}
    said = table["probability_AD"].to_numpy()
    evaluated = result.rows["probability"][:, 1]
    np.testing.assert_allclose([said[rows[str(name)]] for name in result.rows["sample_id"]], evaluated, rtol=1e-4)
    one = trainer.predict(next(tree.glob("sub-*/ses-M000/anat/*T1w.nii.gz")))
    assert one["predicted"][0] in ("CN", "AD")
    assert one[["probability_CN", "probability_AD"]].sum(axis=1)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    "extraction", [{"kind": "slice", "borders": 6}, {"kind": "patch", "size": [16, 16, 8], "overlap": [0, 0, 0]}]
)
def test_parts_vote_alike_in_evaluation_and_prediction(tree: Path, tmp_path: Path, extraction: dict[str, Any]) -> None:
    from medtrain_plugins.brain.metrics import image_rows

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


def test_a_regression_answers_in_years(tree: Path, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", tree, task="regression", label="age")
    result = trainer.evaluate("test")
    assert result.metrics["mae"] < 20
    assert set(result.details["intervals"]) >= {"mae", "rmse"}
    assert "brain_scatter.png" in {path.name for path in trainer.report(tmp_path / "report").glob("plots/*")}
    assert 40 < trainer.predict(tree)["prediction"].mean() < 100


def test_mistakes_are_told_before_anything_is_written(tree: Path, tmp_path: Path) -> None:
    for options, error, said in (
        ({"network": "DenseNet12"}, ConfigError, "did you mean"),
        ({"label": "diagnose"}, DataError, "diagnos"),
        ({"class_weights": [1.0, 2.0, 3.0]}, ConfigError, "2 classes"),
    ):
        with pytest.raises(error, match=said):
            trained(tmp_path / "run", tree, **options)
        assert not (tmp_path / "run").exists()


def test_an_image_that_does_not_fit_is_named(tree: Path, tmp_path: Path) -> None:
    trainer = trained(tmp_path / "run", tree)
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 9, 9), dtype=np.float32), np.eye(4)), tmp_path / "odd.nii")
    with pytest.raises(DataError, match=r"odd\.nii.*does not fit"):
        trainer.predict(tmp_path / "odd.nii")
    assert torch.is_grad_enabled()


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
