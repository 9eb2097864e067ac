"""Patches, slices and regions of a volume."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from medtrain.errors import ConfigError, DataError
from medtrain_plugins.brain.data.extraction import cut, find_parts
from medtrain_plugins.brain.options import ExtractionOptions
from pydantic import ValidationError

SHAPE = (10, 12, 9)
VOLUME = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(1, *SHAPE)


@pytest.mark.parametrize("padding", ["none", "constant", "edge", "reflect"])
@pytest.mark.parametrize("overlap", [0, (1, 2, 0)])
def test_patches_cover_the_image_and_know_their_place(padding: str, overlap: object) -> None:
    options = ExtractionOptions.model_validate(
        {"kind": "patch", "size": 4, "overlap": overlap, "padding": padding, "padding_value": -7}
    )
    places = find_parts(options, SHAPE)
    seen = np.full(SHAPE, -1.0)
    for place in places:
        part = cut(VOLUME, place, options)
        assert part.shape == (1, 4, 4, 4)
        inside = tuple(slice(a, min(b, n)) for a, b, n in zip(place.start, place.stop, SHAPE, strict=True))
        size = tuple(s.stop - s.start for s in inside)
        seen[inside] = part[0, : size[0], : size[1], : size[2]]
        if padding == "none":
            assert size == (4, 4, 4)
        elif padding == "constant":
            assert (part == -7).sum() == 64 - np.prod(size)
    np.testing.assert_array_equal(seen, VOLUME[0])
    assert len({place.name for place in places}) == len(places)


def test_masks_are_padded_with_background() -> None:
    options = ExtractionOptions(kind="patch", size=(8, 8, 8), padding_value=5.0)  # type: ignore[call-arg]
    part = cut(np.ones((1, *SHAPE), np.uint8), find_parts(options, SHAPE)[-1], options, labels=True)
    assert part.dtype == np.uint8 and set(np.unique(part)) == {0, 1}


def test_a_patch_larger_than_the_image_needs_padding() -> None:
    options = ExtractionOptions.model_validate({"kind": "patch", "size": 11, "padding": "none"})
    with pytest.raises(DataError, match="allow padding"):
        find_parts(options, SHAPE)


@pytest.mark.parametrize("direction", [0, 1, 2])
def test_slices_leave_out_borders_and_discarded(direction: int) -> None:
    options = ExtractionOptions.model_validate(
        {"kind": "slice", "direction": direction, "borders": [2, 3], "discarded": [3]}
    )
    places = find_parts(options, SHAPE)
    kept = [number for number in range(2, SHAPE[direction] - 3) if number != 3]
    assert [place.start[direction] for place in places] == kept
    for place, number in zip(places, kept, strict=True):
        expected = VOLUME.take(number, axis=1 + direction)
        np.testing.assert_array_equal(cut(VOLUME, place, options), expected)
    flat = ExtractionOptions.model_validate({"kind": "slice", "direction": direction, "squeeze": False})
    assert cut(VOLUME, find_parts(flat, SHAPE)[0], flat).ndim == 4
    chosen = ExtractionOptions.model_validate({"kind": "slice", "slices": [4, 1]})
    assert [place.name for place in find_parts(chosen, SHAPE)] == ["slice-0004", "slice-0001"]


def test_impossible_slices_are_refused() -> None:
    with pytest.raises(ConfigError, match="no slice is left"):
        find_parts(ExtractionOptions.model_validate({"kind": "slice", "borders": 6}), SHAPE)
    with pytest.raises(DataError, match="no slice 99"):
        find_parts(ExtractionOptions.model_validate({"kind": "slice", "slices": [99]}), SHAPE)


def test_regions_by_name_and_from_a_mask(tmp_path: Path) -> None:
    options = ExtractionOptions.model_validate({"kind": "roi", "boxes": {"left": [0, 3, 2, 6, 1, 9]}})
    (place,) = find_parts(options, SHAPE)
    np.testing.assert_array_equal(cut(VOLUME, place, options), VOLUME[:, 0:3, 2:6, 1:9])
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 5:7, 3:8], mask[9, 0, 0] = 2, 7
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "atlas.nii.gz")
    options = ExtractionOptions.model_validate({"kind": "roi", "mask": str(tmp_path / "atlas.nii.gz"), "margin": 1})
    first, second = find_parts(options, SHAPE)
    assert (first.name, first.start, first.stop) == ("roi-2", (1, 4, 2), (5, 8, 9))
    assert (second.name, second.start, second.stop) == ("roi-7", (8, 0, 0), (10, 2, 2))
    with pytest.raises(DataError, match="the images have"):
        find_parts(options, (10, 12, 10))
    outside = ExtractionOptions.model_validate({"kind": "roi", "boxes": {"far": [0, 30, 0, 3, 0, 3]}})
    with pytest.raises(DataError, match="'far'"):
        find_parts(outside, SHAPE)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "patch"}, "need a size"),
        ({"kind": "patch", "size": 4, "overlap": 4}, "smaller than the size"),
        ({"kind": "roi"}, "either by boxes or by a mask"),
        ({"kind": "patch", "size": 4, "stride": 2}, "stride"),
    ],
)
def test_options_that_cannot_be(table: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExtractionOptions.model_validate(table)
