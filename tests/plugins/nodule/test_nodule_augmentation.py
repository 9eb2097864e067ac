"""Random changes of patches: points go where the image goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from medtrain_plugins.nodule.data.augmentation import SampledTransform, sample_transform
from medtrain_plugins.nodule.data.patches import cut
from medtrain_plugins.nodule.options import AugmentationOptions
from pydantic import ValidationError

SIZE = (32, 40, 40)
SPACING = np.array([1.5, 1.0, 1.0])
START = np.array([20, 24, 30])
SECTIONS = [name for name in AugmentationOptions.model_fields if name != "enabled"]
GEOMETRIC: dict[str, dict[str, Any]] = {
    "random_flip": {},
    "random_rotate90": {},
    "random_rotation": {"max_angle": 15},
    "random_scale": {"scale_range": [0.8, 1.25]},
    "random_translation": {"max_shift": 4},
    "elastic_deformation": {"alpha": 60, "sigma": 5},
}


def only(**sections: dict[str, Any]) -> AugmentationOptions:
    """Options under which nothing happens but what is named, and that always."""
    given = {
        name: {"probability": 1, **sections[name]} if name in sections else {"probability": 0} for name in SECTIONS
    }
    return AugmentationOptions.model_validate(given)


def drawn(options: AugmentationOptions, seed: int = 0, size: tuple[int, int, int] = SIZE) -> SampledTransform:
    return sample_transform(options, size, SPACING, np.random.default_rng(seed))


def a_volume() -> np.ndarray:
    return np.random.default_rng(0).normal(-500, 200, (70, 90, 95)).astype(np.int16)


def an_image() -> np.ndarray:
    return np.random.default_rng(0).random(SIZE, dtype=np.float32)


@pytest.mark.parametrize("names", [*([name] for name in GEOMETRIC), list(GEOMETRIC)], ids="+".join)
def test_a_bright_point_lands_where_its_centre_goes(names: list[str]) -> None:
    options = only(**{name: GEOMETRIC[name] for name in names})
    grid = np.meshgrid(*map(np.arange, (70, 90, 95)), indexing="ij", sparse=True)
    looked_at = 0
    for seed in range(12):
        point = START + np.array([16, 20, 20]) + np.random.default_rng([1, seed]).uniform(-6, 6, 3)
        volume = np.exp(-sum((axis - p) ** 2 for axis, p in zip(grid, point, strict=True)) / 6).astype(np.float32)
        transform = drawn(options, seed)
        patch = np.clip(transform.cut(volume, START, outside=0) - 0.2, 0, None)
        expected = transform.moved((point - START)[None])[0]
        np.testing.assert_allclose(transform.sources(expected[None])[0], point - START, atol=1e-5)
        if (expected < 4).any() or (expected > np.array(SIZE) - 5).any():
            continue
        seen = [(patch.sum(axis=tuple({0, 1, 2} - {a})) * np.arange(SIZE[a])).sum() / patch.sum() for a in range(3)]
        assert np.abs(seen - expected).max() < 0.3
        looked_at += 1
    assert looked_at >= 6


def test_nothing_drawn_is_the_patch_itself() -> None:
    volume = a_volume()
    for options in (only(), AugmentationOptions(enabled=False)):
        for seed in range(5):
            transform = drawn(options, seed)
            patch = transform.cut(volume, START)
            np.testing.assert_array_equal(patch, cut(volume, START, SIZE))
            assert transform.revalue(an_image(), SPACING, 0, 1).tobytes() == an_image().tobytes()


def test_the_documented_defaults_are_on() -> None:
    options = AugmentationOptions.model_validate({})
    assert options.random_flip.probability == 0.5 and options.random_flip.axes == (0, 1, 2)
    assert options.random_rotation.probability == 0.5 and options.random_rotation.max_angle == 15
    assert options.random_scale.probability == 0.5 and options.random_scale.scale_range == (0.9, 1.1)
    assert options.random_noise.probability == 0.3 and options.random_noise.noise_std == 0.01
    assert options.elastic_deformation.probability == 0.2
    assert (options.elastic_deformation.alpha, options.elastic_deformation.sigma) == (10, 3)


@pytest.mark.parametrize("section", SECTIONS)
def test_each_section_changes_patches_as_often_as_its_probability_says(section: str) -> None:
    volume, size = a_volume(), (12, 14, 14)

    def changes(probability: float) -> float:
        options = only(**{section: {"probability": probability}})
        count = 0
        for seed in range(60):
            transform = sample_transform(options, size, SPACING, np.random.default_rng(seed))
            image = transform.cut(volume, START).astype(np.float32)
            count += not np.array_equal(transform.revalue(image, SPACING, -1000, 400), cut(volume, START, size))
        return count / 60

    assert changes(0) == 0
    assert changes(1) == 1
    # Three axes may be mirrored, each by its own chance.
    expected = 1 - 0.7**3 if section == "random_flip" else 0.3
    assert changes(0.3) == pytest.approx(expected, abs=0.18)


def test_flips_mirror_the_chosen_axes_only_and_to_the_bit() -> None:
    volume = a_volume()
    flipped = drawn(only(random_flip={"axes": [1]})).cut(volume, START)
    np.testing.assert_array_equal(flipped, cut(volume, START, SIZE)[:, ::-1])
    assert flipped.dtype == np.int16


def test_quarter_turns_really_turn_and_only_square_planes() -> None:
    volume, found = a_volume(), set()
    plain = cut(volume, START, SIZE)
    for seed in range(40):
        turned = drawn(only(random_rotate90={}), seed).cut(volume, START)
        match = [k for k in (1, 2, 3) if np.array_equal(turned, np.rot90(plain, k, axes=(1, 2)))]
        assert len(match) == 1, "patches of 32 x 40 x 40 may be turned about z only"
        found |= set(match)
    assert found == {1, 2, 3}


def test_rotations_keep_within_their_angle_and_are_of_the_patient() -> None:
    largest = {}
    for max_angle in (5, 15):
        angles = []
        for seed in range(60):
            linear = drawn(only(random_rotation={"max_angle": max_angle}), seed).linear
            in_mm = SPACING[:, None] * linear / SPACING
            np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
            angles.append(np.degrees(np.arccos(np.clip((np.trace(in_mm) - 1) / 2, -1, 1))))
        largest[max_angle] = max(angles)
    assert largest[5] <= 5 * np.sqrt(3) + 0.1
    assert 10 < largest[15] <= 15 * np.sqrt(3) + 0.5


@pytest.mark.parametrize("max_shift", [1.5, 8.0])
def test_shifts_keep_within_their_reach(max_shift: float) -> None:
    shifts = [drawn(only(random_translation={"max_shift": max_shift}), seed).shift for seed in range(60)]
    assert 0.9 * max_shift < np.abs(shifts).max() <= max_shift


def test_zoom_enlarges_a_ball_by_the_factor_that_diameters_get() -> None:
    grid = np.meshgrid(*map(np.arange, (70, 90, 95)), indexing="ij", sparse=True)
    centre = START + (np.array(SIZE) - 1) / 2
    away = np.sqrt(sum(((axis - c) * s) ** 2 for axis, c, s in zip(grid, centre, SPACING, strict=True)))
    volume = np.clip(8.5 - away, 0, 1).astype(np.float32)
    for scale in (0.8, 1.2):
        transform = drawn(only(random_scale={"scale_range": [scale, scale]}))
        assert transform.scale == pytest.approx(scale)
        grown = transform.cut(volume, START, outside=0).sum() / cut(volume, START, SIZE, 0).sum()
        assert grown == pytest.approx(scale**3, rel=0.05)


def test_elastic_fields_grow_with_alpha_coarsen_with_sigma_and_never_fold() -> None:
    def bend(alpha: float, sigma: float) -> np.ndarray:
        transform = drawn(only(elastic_deformation={"alpha": alpha, "sigma": sigma}), 3)
        assert transform.bend is not None
        return transform.bend

    assert bend(20, 3) == pytest.approx(2 * bend(10, 3), abs=1e-6)
    assert bend(10, 3).std() == pytest.approx(10 * 0.577 / (2 * np.sqrt(np.pi) * 3) ** 1.5, rel=0.3)
    assert bend(10, 6).shape[1] < bend(10, 3).shape[1]
    transform = drawn(only(elastic_deformation={"alpha": 10000, "sigma": 4}))
    points = np.random.default_rng(0).uniform(2, 28, (50, 3))
    np.testing.assert_allclose(transform.sources(transform.moved(points)), points, atol=1e-5)


def test_masks_move_with_the_image_without_new_labels() -> None:
    volume = np.zeros((70, 90, 95), dtype=np.uint8)
    volume[30:42, 38:50, 44:56] = 3
    transform = drawn(only(random_rotation={}, random_scale={}, elastic_deformation={}), 5)
    mask = transform.cut(volume, START, outside=0, nearest=True)
    image = transform.cut(volume.astype(np.float32), START, outside=0)
    assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 3}
    assert ((mask == 3) == (image > 1.5)).mean() > 0.995


def test_corners_of_turned_patches_show_the_scan_not_air() -> None:
    volume = np.full((70, 90, 95), 50, dtype=np.int16)
    transform = drawn(only(random_rotation={"max_angle": 15}, random_scale={"scale_range": [0.9, 0.9]}), 1)
    np.testing.assert_allclose(transform.cut(volume, START), 50, atol=1e-3)
    assert transform.cut(volume, np.array([-30, 0, 0])).min() == pytest.approx(-1000, abs=1e-2)


def test_values_change_as_each_section_says() -> None:
    image = an_image()

    def after(section: str, **settings: Any) -> np.ndarray:
        return drawn(only(**{section: settings})).revalue(image, SPACING, 0.0, 1.0)

    for std in (0.01, 0.05):
        assert (after("random_noise", noise_std=std) - image).std() == pytest.approx(std, rel=0.02)
    assert (
        after("random_blur", sigma_range=[1, 1]).std()
        < after("random_blur", sigma_range=[0.4, 0.4]).std()
        < image.std()
    )
    np.testing.assert_allclose(after("random_gamma", gamma_range=[2, 2]), image**2, atol=1e-6)
    np.testing.assert_allclose(after("random_intensity", factor_range=[1.1, 1.1], max_offset=0), image * 1.1, atol=1e-6)
    shifted = after("random_intensity", factor_range=[1, 1], max_offset=0.05) - image
    assert shifted.std() < 1e-6 and 0 < abs(shifted.mean()) <= 0.05
    thick, thicker = (after("slice_thickness", thickness_range=[mm, mm]) for mm in (3, 6))
    roughness = [np.abs(np.diff(values, axis=0)).mean() for values in (thicker, thick, image)]
    assert roughness[0] < roughness[1] < roughness[2]
    assert thick.mean() == pytest.approx(image.mean(), abs=0.01)


def test_equal_seeds_give_equal_patches() -> None:
    options, volume = only(**{name: GEOMETRIC.get(name, {}) for name in SECTIONS}), a_volume()

    def made(seed: int) -> np.ndarray:
        transform = drawn(options, seed)
        return transform.revalue(transform.cut(volume, START).astype(np.float32), SPACING, 0, 1)

    assert made(3).tobytes() == made(3).tobytes()
    assert made(3).tobytes() != made(4).tobytes()


@pytest.mark.parametrize(
    "given",
    [
        {"random_flip": {"probability": 1.2}},
        {"random_flip": {"axes": [3]}},
        {"random_scale": {"scale_range": [1.1, 0.9]}},
        {"random_gamma": {"gamma_range": [0, 1]}},
        {"random_rotaton": {}},
    ],
)
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentationOptions.model_validate(given)
