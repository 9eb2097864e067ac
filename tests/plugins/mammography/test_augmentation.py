"""Augmentation of exams: one draw per sample for all images, each operation against kornia or by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.mammography.cohort.augmentation import ExamAugmentation
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

LMV_KEYS = ("current_image_cc", "current_image_mlo", "previous_image_cc", "previous_image_mlo")
NEVER: dict[str, Any] = {"crop_p": 0.0, "affine_p": 0.0, "jitter_p": 0.0, "gamma_p": 0.0, "flip_p": 0.0}
H, W = 61, 47  # odd and uneven: a mixed-up axis or a half pixel shows


def pictures(*shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth images with a dark surround, like a breast, so that interpolation errors stay readable."""
    noise = torch.rand(*shape[:-2], 9, 7, generator=torch.Generator().manual_seed(seed))
    flat = F.interpolate(noise.reshape(-1, 1, 9, 7), shape[-2:], mode="bicubic", align_corners=False)
    return flat.clamp(0.02, 0.98).reshape(shape)


def drawn(augmentation: ExamAugmentation, seeds: range) -> dict[str, torch.Tensor]:
    """Draws of one sample per seed, stacked as the core stacks them."""
    draws = [augmentation.draw(torch.Generator().manual_seed(seed)) for seed in seeds]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def applied(image: torch.Tensor, settings: dict[str, Any], **numbers: Any) -> torch.Tensor:
    """One batch of images under `settings`, with some numbers of the draws set by hand."""
    augmentation = ExamAugmentation(["image"], **(NEVER | settings))
    draws = drawn(augmentation, range(len(image)))
    for name, value in numbers.items():
        draws[name] = torch.full_like(draws[name], value)
    changed: torch.Tensor = augmentation({"image": image}, draws)["image"]
    return changed


def test_nothing_drawn_changes_no_bit_even_outside_the_range() -> None:
    image = pictures(3, 1, H, W) * 3 - 1
    before = image.clone()
    after = applied(image, {})
    assert torch.equal(after, before) and torch.equal(image, before)
    assert after.data_ptr() != image.data_ptr()


def test_within_a_batch_only_the_chosen_samples_change() -> None:
    augmentation = ExamAugmentation(["image"])
    image = pictures(40, 1, H, W)
    draws = drawn(augmentation, range(40))
    after = augmentation({"image": image}, draws)["image"]
    chosen = torch.stack([draws[name] for name in ("crop", "affine", "jitter", "gamma", "flip")]).any(0)
    same = (after == image).flatten(1).all(1)
    assert torch.equal(same, ~chosen)
    assert 0 < same.sum() < 40


def test_one_draw_serves_prior_current_and_all_views() -> None:
    augmentation = ExamAugmentation(LMV_KEYS)
    image = pictures(16, 1, H, W)
    batch: dict[str, Any] = {key: image.clone() for key in LMV_KEYS}
    batch["sample_id"] = [str(i) for i in range(16)]
    draws = drawn(augmentation, range(16))
    after = augmentation(batch, draws)
    for key in LMV_KEYS[1:]:
        assert torch.equal(after[key][~draws["gamma"]], after[LMV_KEYS[0]][~draws["gamma"]])
        # A power rounds differently in and out of the vector unit: the last bit may depend on the place.
        torch.testing.assert_close(after[key], after[LMV_KEYS[0]], rtol=0, atol=2e-7)
    assert not torch.equal(after[LMV_KEYS[0]], image)
    assert after["sample_id"] is batch["sample_id"] and torch.equal(batch[LMV_KEYS[0]], image)


@pytest.mark.parametrize("shape", [(6, 1, H, W), (6, 4, 1, H, W), (6, 2, 4, 1, H, W)])
def test_every_layout_of_the_family_gives_the_same_images(shape: tuple[int, ...]) -> None:
    image = pictures(*shape)
    whole = ExamAugmentation(["images"])
    draws = drawn(whole, range(6))
    after = whole({"images": image}, draws)["images"]
    assert after.shape == shape and after.dtype == torch.float32

    flat, flat_after = image.reshape(6, -1, 1, H, W), after.reshape(6, -1, 1, H, W)
    keys = [f"image_{i}" for i in range(flat.shape[1])]
    apart = ExamAugmentation(keys)(dict(zip(keys, flat.unbind(1), strict=True)), draws)
    for i, key in enumerate(keys):
        torch.testing.assert_close(apart[key], flat_after[:, i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(H, W), (201, 167)])  # the larger one is split over the threads
def test_a_sample_does_not_depend_on_its_batch(size: tuple[int, int]) -> None:
    augmentation = ExamAugmentation(["current_image", "previous_image"])
    batch = {"current_image": pictures(7, 1, *size), "previous_image": pictures(7, 1, *size, seed=1)}
    draws = drawn(augmentation, range(7))
    together = augmentation(batch, draws)
    for rows in ([0], [3], [6, 2], [5, 4, 3, 2]):
        part = augmentation({k: v[rows] for k, v in batch.items()}, {k: v[rows] for k, v in draws.items()})
        for key in batch:
            assert torch.equal(part[key], together[key][rows])


def test_an_empty_batch_stays_empty() -> None:
    augmentation = ExamAugmentation(["image"])
    draws = {name: values[:0] for name, values in drawn(augmentation, range(1)).items()}
    assert augmentation({"image": torch.zeros(0, 1, H, W)}, draws)["image"].shape == (0, 1, H, W)


def test_the_range_stays_zero_to_one() -> None:
    always = dict.fromkeys(NEVER, 1.0)
    image = torch.rand(64, 1, 24, 20, generator=torch.Generator().manual_seed(0))
    after = applied(image, always | {"gain": (1.0, 2.0)})
    assert after.min() == 0 and after.max() == 1


def test_flip_is_a_mirror_to_the_bit() -> None:
    image = pictures(2, 4, 1, H, W)
    assert torch.equal(applied(image, {"flip_p": 1.0}), image.flip(-1))


def test_flip_and_affine_together_is_the_affine_mirrored() -> None:
    image = pictures(3, 1, H, W)
    moved = applied(image, {"affine_p": 1.0})
    assert torch.equal(applied(image, {"affine_p": 1.0, "flip_p": 1.0}), moved.flip(-1))


def test_affine_is_that_of_kornia() -> None:
    from kornia.augmentation import RandomAffine

    torch.manual_seed(3)
    image = pictures(8, 1, H, W)
    kornia = RandomAffine(0.0, translate=(0.0, 0.1), scale=(1.0, 1.1), p=1.0, align_corners=True)
    wanted = kornia(image)
    parameters = kornia._params
    augmentation = ExamAugmentation(["image"], **(NEVER | {"affine_p": 1.0}))
    draws = drawn(augmentation, range(8))
    draws["shift"] = parameters["translations"][:, 1] / H
    draws["scale"] = parameters["scale"][:, 0]
    assert draws["shift"].std() > 0.02 and draws["scale"].std() > 0.01
    torch.testing.assert_close(augmentation({"image": image}, draws)["image"], wanted, rtol=0, atol=1e-4)


def test_a_positive_shift_moves_down_by_that_fraction_of_the_height() -> None:
    image = pictures(1, 1, 40, 30)
    after = applied(image, {"affine_p": 1.0}, shift=0.1, scale=1.0)
    torch.testing.assert_close(after[..., 4:, :], image[..., :-4, :], rtol=0, atol=1e-5)
    assert after[..., :4, :].abs().max() < 1e-4


def test_crop_is_the_window_enlarged() -> None:
    image = pictures(1, 1, 64, 52)
    top, left, height, width = 2, 3, 56, 47
    wanted = F.interpolate(
        image[..., top : top + height, left : left + width], (64, 52), mode="bilinear", align_corners=False
    )
    settings = {"crop_p": 1.0, "crop_size": (height / 64, width / 52)}
    after = applied(image, settings, crop_top=top / (64 - height), crop_left=left / (52 - width))
    # Only the outermost pixels see what lies beside the window.
    torch.testing.assert_close(after[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_crop_then_affine_in_one_lookup_is_one_after_the_other() -> None:
    # A plane survives any number of bilinear interpolations exactly, away from the edges.
    rows, columns = torch.linspace(0.1, 0.5, H)[:, None], torch.linspace(0, 0.4, W)
    plane = (rows + columns).expand(1, 1, H, W)
    crop, affine = {"crop_top": 0.7, "crop_left": 0.2}, {"shift": 0.06, "scale": 1.07}
    both = applied(plane, {"crop_p": 1.0, "affine_p": 1.0}, **crop, **affine)
    in_turn = applied(applied(plane, {"crop_p": 1.0}, **crop), {"affine_p": 1.0}, **affine)
    inside = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(both[inside], in_turn[inside], rtol=0, atol=1e-5)
    swapped = applied(applied(plane, {"affine_p": 1.0}, **affine), {"crop_p": 1.0}, **crop)
    assert (both[inside] - swapped[inside]).abs().max() > 1e-3


def test_gamma_is_its_formula() -> None:
    image = pictures(2, 1, H, W)
    after = applied(image, {"gamma_p": 1.0}, exponent=0.85, gain=1.05)
    torch.testing.assert_close(after, (1.05 * image**0.85).clamp(0, 1))
    assert (1.05 * image**0.85).max() > 1


@pytest.mark.parametrize("contrast_first", [True, False])
def test_jitter_is_that_of_kornia_in_either_order(contrast_first: bool) -> None:
    from kornia.augmentation import ColorJitter

    image = pictures(2, 3, 1, H, W)
    order = (1, 0) if contrast_first else (0, 1)
    kornia = ColorJitter(brightness=(1.35, 1.35), contrast=(0.65, 0.65), p=1.0, order=order)
    wanted = kornia(image.reshape(-1, 1, H, W)).reshape(image.shape)
    numbers = {"brightness": 1.35, "contrast": 0.65}
    after = applied(image, {"jitter_p": 1.0}, contrast_first=contrast_first, **numbers)
    torch.testing.assert_close(after, wanted)
    other = applied(image, {"jitter_p": 1.0}, contrast_first=not contrast_first, **numbers)
    assert (after - other).abs().max() > 1e-2


def test_draws_have_the_published_proportions_and_ranges() -> None:
    augmentation = ExamAugmentation(["image"])
    draws = drawn(augmentation, range(2000))
    wanted = {"crop": 0.2, "affine": 0.5, "jitter": 0.5, "gamma": 0.5, "flip": 0.5, "contrast_first": 0.5}
    for name, share in wanted.items():
        assert draws[name].dtype == torch.bool and draws[name].shape == (2000,)
        assert abs(draws[name].double().mean() - share) < 0.045  # four standard errors
    ranges = {
        "crop_top": ("crop", 0.0, 1.0, 0.0),
        "crop_left": ("crop", 0.0, 1.0, 0.0),
        "shift": ("affine", -0.1, 0.1, 0.0),
        "scale": ("affine", 1.0, 1.1, 1.0),
        "brightness": ("jitter", 0.6, 1.4, 1.0),
        "contrast": ("jitter", 0.6, 1.4, 1.0),
        "exponent": ("gamma", 0.8, 1.2, 1.0),
        "gain": ("gamma", 0.9, 1.05, 1.0),
    }
    assert draws.keys() == wanted.keys() | ranges.keys()
    for name, (choice, low, high, neutral) in ranges.items():
        used = draws[name][draws[choice]]
        assert low - 1e-6 <= used.min() < low + 0.03 * (high - low)
        assert high - 0.03 * (high - low) < used.max() <= high + 1e-6
        assert abs(used.mean() - (low + high) / 2) < 0.07 * (high - low)
        assert (draws[name][~draws[choice]] == neutral).all()
    # Independent of each other, and of what was or was not chosen.
    table = torch.stack([draws[name].double() for name in (*wanted, "shift", "brightness", "contrast")])
    assert (table.corrcoef() - torch.eye(len(table))).abs().max() < 0.09


def test_draws_are_a_function_of_the_generator() -> None:
    augmentation = ExamAugmentation(["image"])
    first, again, other = (drawn(augmentation, seeds) for seeds in (range(5), range(5), range(5, 10)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["shift"], other["shift"])
    # Another setting does not shift the numbers of the rest.
    without = drawn(ExamAugmentation(["image"], crop_p=0.0, flip_p=0.0), range(5))
    assert torch.equal(without["shift"], first["shift"]) and torch.equal(without["gain"], first["gain"])


def test_autocast_does_not_reach_the_images() -> None:
    augmentation = ExamAugmentation(["image"])
    image, draws = pictures(8, 1, H, W), drawn(augmentation, range(8))
    plain = augmentation({"image": image}, draws)["image"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = augmentation({"image": image}, draws)["image"]
    assert mixed.dtype == torch.float32 and torch.equal(plain, mixed)


def test_no_number_is_read_back_from_the_device() -> None:
    augmentation = ExamAugmentation(["image"])
    real = drawn(augmentation, range(3))
    augmentation({"image": pictures(3, 2, 1, H, W)}, real)  # imports what it needs, outside the mode
    with FakeTensorMode():  # tensors without values: reading one (.item(), bool(), a mask as index) raises
        draws = {name: torch.empty(3, dtype=values.dtype) for name, values in real.items()}
        after = augmentation({"image": torch.empty(3, 2, 1, H, W)}, draws)["image"]
        with pytest.raises(DataDependentOutputException):
            bool(draws["flip"][0])
    assert after.shape == (3, 2, 1, H, W)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 1, H, W, dtype=torch.uint8), "float32"),
        (["a.png", "b.png"], "list"),
        (torch.zeros(2, 3, H, W), r"\(2, 3, 61, 47\)"),
        (torch.zeros(1, H, W), r"\(1, 61, 47\)"),
        (torch.zeros(2, 1, H, W + 1), r"is \(2, 1, 61, 48\)"),
        (torch.zeros(1, 1, H, W), r"is \(1, 1, 61, 47\)"),
    ],
)
def test_unusable_images_are_named(image: Any, message: str) -> None:
    augmentation = ExamAugmentation(["current_image", "previous_image"])
    batch = {"current_image": torch.zeros(2, 1, H, W), "previous_image": image}
    with pytest.raises(DataError, match=f"previous_image.*{message}"):
        augmentation(batch, drawn(augmentation, range(2)))
    del batch["previous_image"]
    with pytest.raises(DataError, match=r"no images 'previous_image'; its keys are current_image"):
        augmentation(batch, drawn(augmentation, range(2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_keys": []}, "image_keys"),
        ({"image_keys": "image"}, "image_keys"),
        ({"flip_p": 1.5}, "flip_p"),
        ({"crop_p": -0.1}, "crop_p"),
        ({"brightness": 2.0}, "brightness"),
        ({"max_shift": float("nan")}, "max_shift"),
        ({"crop_size": (1.2, 1.0)}, "crop_size"),
        ({"scale": (1.1, 1.0)}, "scale"),
        ({"gamma": (0.0, 1.0)}, "gamma"),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExamAugmentation(**({"image_keys": ["image"]} | settings))
