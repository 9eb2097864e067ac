"""MONAI's transforms by name: on images and masks, with seeds; and what is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain.data.transforms import BatchAugmentation, Pipeline, TransformOptions

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.rand(1, 8, 9, 10, generator=GENERATOR)
MASK = torch.randint(0, 5, (1, 8, 9, 10), generator=GENERATOR)
RANDOM = [
    {"name": "RandFlip", "prob": 0.5, "spatial_axis": 1},
    {"name": "RandAffine", "prob": 1.0, "rotate_range": [0.4, 0.1, 0.1], "translate_range": 1.0},
    {"name": "RandGaussianNoise", "prob": 1.0, "std": 0.2},
]


def test_transforms_are_those_of_monai() -> None:
    from monai.transforms import Compose, NormalizeIntensity, ResizeWithPadOrCrop

    steps = [
        {"name": "NormalizeIntensity", "nonzero": True},
        {"name": "ResizeWithPadOrCrop", "spatial_size": [6, 6, 12]},
    ]
    ours = Pipeline(steps)({"image": IMAGE, "sample_id": "a"})
    theirs = Compose([NormalizeIntensity(nonzero=True), ResizeWithPadOrCrop([6, 6, 12])])(IMAGE)
    assert type(ours["image"]) is torch.Tensor and ours["image"].dtype == torch.float32
    torch.testing.assert_close(ours["image"], torch.as_tensor(np.asarray(theirs)))
    assert ours["sample_id"] == "a"


def test_masks_move_with_images_and_keep_their_labels() -> None:
    sample = {"image": MASK.float(), "mask": MASK}
    moved = Pipeline([{"name": "Zoom", "zoom": 1.3}, {"name": "Rotate90"}])(sample)
    assert moved["mask"].dtype == torch.int64 and set(moved["mask"].unique().tolist()) <= {0, 1, 2, 3, 4}
    flipped = Pipeline(["Flip", {"name": "ScaleIntensity", "minv": 5, "maxv": 6}])(sample)
    assert torch.equal(flipped["mask"], MASK.flip(1, 2, 3))
    assert flipped["image"].min() == 5
    cropped = Pipeline([{"name": "CropForeground"}])(
        {"image": torch.nn.functional.pad(IMAGE + 1, (2, 2)), "mask": torch.nn.functional.pad(MASK, (2, 2))}
    )
    assert cropped["image"].shape == IMAGE.shape and torch.equal(cropped["mask"], MASK)


def test_what_resamples_knows_the_affine_and_tells_the_new_one() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    made, found = Pipeline([{"name": "Spacing", "pixdim": [1.0, 1.0, 1.0]}]).with_affine({"image": IMAGE}, affine)
    assert made["image"].shape == (1, 15, 17, 19)
    np.testing.assert_allclose(np.diag(found), 1)
    turned, found = Pipeline([{"name": "Orientation", "axcodes": "LAS"}, "ScaleIntensity"]).with_affine(
        {"image": IMAGE, "mask": MASK}, affine
    )
    assert torch.equal(turned["mask"], MASK.flip(1))
    np.testing.assert_allclose(found[0], [-2, 0, 0, 2 * (IMAGE.shape[1] - 1)])
    assert {type(value) for value in turned.values()} == {torch.Tensor}


def test_draws_follow_the_seed() -> None:
    pipeline = Pipeline(RANDOM, random=True)
    sample = {"image": IMAGE, "mask": MASK}
    first, again, other = (pipeline(sample, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["mask"], again["mask"])
    assert not torch.equal(first["image"], other["image"])
    sent = pickle.loads(pickle.dumps(pipeline))(sample, seed=1)
    assert torch.equal(first["image"], sent["image"])
    alone = pipeline({"image": IMAGE}, seed=1)
    assert torch.equal(alone["image"], first["image"])
    with pytest.raises(DataError, match="need a seed"):
        pipeline(sample)


def test_a_batch_is_changed_sample_by_sample() -> None:
    augmentation = BatchAugmentation(RANDOM)
    batch = {"image": IMAGE.repeat(3, 1, 1, 1, 1), "mask": MASK.repeat(3, 1, 1, 1, 1), "sample_id": ["a", "b", "c"]}
    draws = [augmentation.draw(torch.Generator().manual_seed(seed)) for seed in (5, 6, 5)]
    made = augmentation(batch, {"augmentation_seed": torch.stack([draw["augmentation_seed"] for draw in draws])})
    assert made["image"].shape == batch["image"].shape and made["mask"].dtype == torch.int64
    assert torch.equal(made["image"][0], made["image"][2]) and not torch.equal(made["image"][0], made["image"][1])
    assert torch.equal(batch["image"][0], IMAGE)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("NormaliseIntensity", r"no transform.*did you mean 'NormalizeIntensity'"),
        ("LoadImage", "no transform"),
        ("SaveImage", "no transform"),
        ("Lambda", "no transform"),
        ("Compose", "no transform"),
        ("ScaleIntensityd", "no transform"),
        ({"name": "ScaleIntensity", "minimum": 0}, r"no argument 'minimum'.*it takes: .*minv"),
        ({"name": "RandFlip"}, "draws at random; list it under augmentations"),
        ({"name": "NormalizeIntensity", "subtrahend": 1, "divisor": {}, "dtype": "nonsense"}, "NormalizeIntensity"),
    ],
)
def test_steps_that_cannot_be_are_explained(step: object, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        pipeline = Pipeline([step])  # type: ignore[list-item]
        pipeline.check()
        pipeline({"image": IMAGE})


def test_options_keep_arguments_beside_the_name() -> None:
    options = TransformOptions.model_validate({"name": "Zoom", "zoom": 2})
    assert options.arguments == {"zoom": 2} and options.model_dump() == {"name": "Zoom", "zoom": 2}


def test_several_samples_of_one_are_refused() -> None:
    crop = {"name": "RandSpatialCropSamples", "roi_size": 3, "num_samples": 2}
    with pytest.raises(ConfigError, match="several samples"):
        Pipeline([crop], random=True)({"image": IMAGE}, seed=0)
