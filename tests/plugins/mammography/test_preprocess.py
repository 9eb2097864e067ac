"""From pixels of a DICOM mammogram to the image a model reads: golden steps, LUTs, padding, 16 bits to the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_files import breast, mammogram
from medtrain_plugins.mammography.preparation.preprocess import (
    fit,
    grey_values,
    largest_contour,
    model_image,
    to_uint8,
    to_uint16,
)
from pydicom.dataset import Dataset

GOLDEN = Path(__file__).parents[2] / "golden" / "preprocess.json"


@pytest.fixture(scope="module")
def case():
    found = json.loads(GOLDEN.read_text())["preprocess"]
    return {name: np.array(values) for name, values in {**found["inputs"], **found["outputs"]}.items()}


def test_golden_steps(case):
    proxy = to_uint8(case["image"].astype(np.float32))
    assert np.array_equal(proxy, case["uint8"])
    cut = np.where(largest_contour(proxy), proxy, 0).astype(np.uint8)
    assert np.array_equal(cut, case["largest_contour"])
    for side in "LR":
        assert np.array_equal(fit(cut, (9, 12), side), case[f"resize_9x12_{side}"])
    small = fit(cut, (3, 4), "R")
    assert np.array_equal(small, case["resize_3x4_R"])
    assert np.array_equal(to_uint16(small), case["uint16_of_3x4_R"])


def test_more_than_256_grey_values_survive():
    image = breast().astype(np.float32)
    made = model_image(image, "L", image.shape)
    assert made.dtype == np.uint16
    assert made.max() == 65535
    assert np.array_equal(made, (image.astype(np.float64) * 65535 / image.max()).astype(np.uint16))
    assert len(np.unique(made)) > 1000


def test_only_the_largest_connected_area_is_kept():
    image = breast().astype(np.float32)
    image[2:8, 56:62] = 4000  # a label, brighter than the breast
    made = model_image(image, "L", image.shape)
    assert not made[:10, 50:].any()
    assert made.max() == 65535


def test_holes_of_the_breast_are_part_of_it():
    proxy = np.full((9, 9), 0, np.uint8)
    proxy[1:8, 1:8] = 100
    proxy[4, 4] = 0
    assert largest_contour(proxy)[4, 4]


def test_otsu_separates_tissue_from_a_grey_ground():
    tissue = breast() > 0
    ground = np.random.default_rng(0).integers(1000, 1060, tissue.shape)
    image = np.where(tissue, breast() + 5000, ground).astype(np.float32)
    everything = model_image(image, "L", image.shape, 0)
    otsu = model_image(image, "L", image.shape, "otsu")
    assert (everything > 0).mean() > 0.8
    assert ((otsu > 0) == tissue).mean() > 0.99


@pytest.mark.parametrize(("rows", "columns"), [(50, 90), (90, 50), (40, 30)])
def test_the_aspect_ratio_is_kept_at_the_top_and_the_side(rows, columns):
    image = np.full((rows, columns), 7, np.float32)
    scale = min(64 / rows, 48 / columns)
    height, width = round(rows * scale), round(columns * scale)
    for side, kept in (("L", np.s_[:height, :width]), ("R", np.s_[:height, 48 - width :])):
        fitted = fit(image, (64, 48), side)
        assert np.allclose(fitted[kept], 7)
        assert (fitted > 0).sum() == height * width


@pytest.mark.parametrize("value", [0, 7, np.nan, np.inf])
def test_flat_images_are_refused(value):
    image = np.full((8, 8), 7, np.float32)
    image[3, 3] = value if not np.isfinite(value) else 7
    if value == 0:
        image[:] = 0
    with pytest.raises(ValueError, match=r"every pixel is|not finite"):
        model_image(image, "L", (8, 8))


def test_monochrome1_is_inverted():
    pixels = breast()
    inverted = mammogram((4095 - pixels).astype(np.uint16), PhotometricInterpretation="MONOCHROME1")
    plain = model_image(grey_values(mammogram(pixels)), "L", pixels.shape)
    assert np.array_equal(model_image(grey_values(inverted), "L", pixels.shape), plain)


def test_rescale_and_the_first_window_are_applied():
    pixels = breast()
    dataset = mammogram(pixels, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[3000, 1], WindowWidth=[2001, 2])
    shown = grey_values(dataset)
    # The linear function of the standard: below and above the window the ends of the output range.
    x = 2.0 * pixels - 100
    low, high = -100.0, 4095 * 2.0 - 100
    expected = ((x - 2999.5) / 2000 + 0.5) * (high - low) + low
    assert np.allclose(shown, np.clip(expected, low, high), atol=0.01)
    assert len(np.unique(shown)) > 500


def test_a_voi_lut_goes_before_a_window():
    lut = Dataset()
    lut.LUTDescriptor = [4096, 0, 16]
    lut.LUTData = [min(16 * i, 65535) if i < 2048 else 65535 - i for i in range(4096)]
    lut["LUTData"].VR = "OW"
    lut.LUTData = np.array(lut.LUTData, np.uint16).tobytes()
    pixels = breast()
    shown = grey_values(mammogram(pixels, VOILUTSequence=[lut], WindowCenter=100, WindowWidth=10))
    assert np.array_equal(shown, np.where(pixels < 2048, 16.0 * pixels, 65535.0 - pixels))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("padding", "limit"), [(4095, None), (4000, 4095), (4095, 4000)])
def test_pixel_padding_is_ground_whatever_its_value(photometric, padding, limit):
    pixels = breast()
    stored = (pixels if photometric == "MONOCHROME2" else 3999 - pixels).astype(np.uint16)
    stored[:, -5:] = padding
    dataset = mammogram(stored, PhotometricInterpretation=photometric, PixelPaddingValue=padding)
    if limit is not None:
        dataset.PixelPaddingRangeLimit = limit
    shown = grey_values(dataset)
    assert (shown[:, -5:] <= shown[:, :-5].min()).all()
    if photometric == "MONOCHROME2":
        assert np.array_equal(model_image(shown, "L", pixels.shape) > 0, pixels > 0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_around_the_breast_leaves_its_grey_values_as_they_are(photometric):
    pixels = breast()
    stored = (pixels if photometric == "MONOCHROME2" else 4095 - pixels).astype(np.uint16)
    dataset = mammogram(stored, PhotometricInterpretation=photometric, PixelPaddingValue=int(stored[0, -1]))
    expected = model_image(pixels.astype(np.float32), "L", pixels.shape)
    assert np.array_equal(model_image(grey_values(dataset), "L", pixels.shape), expected)


def test_an_empty_limit_of_the_padding_is_none():
    dataset = mammogram(PixelPaddingValue=0, PixelPaddingRangeLimit=0)
    dataset["PixelPaddingRangeLimit"].value = None
    assert np.array_equal(grey_values(dataset), breast())
