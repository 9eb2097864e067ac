from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort_files import noise
from medtrain.errors import DataError
from medtrain_plugins.mammography.cohort.images import chest_wall_right, read_header, read_image, read_pixels
from PIL import Image


def save(path: Path, pixels: np.ndarray) -> Path:
    Image.fromarray(pixels).save(path)
    return path


def test_pixels_are_divided_by_65535(tmp_path):
    pixels = np.array([[0, 1, 256], [32768, 65534, 65535]], dtype=np.uint16)
    image = read_image(save(tmp_path / "a.png", pixels))
    assert image.shape == (1, 2, 3) and image.dtype == torch.float32
    np.testing.assert_array_equal(image[0].numpy(), pixels.astype(np.float32) / np.float32(65535))
    assert image.max() == 1.0


def test_16_bits_survive(tmp_path):
    pixels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert len(torch.unique(read_image(save(tmp_path / "a.png", pixels)))) == 65536


def test_resize_is_antialiased_bilinear(tmp_path):
    pixels = noise(0, (64, 48))
    image = read_image(save(tmp_path / "a.png", pixels), size=(16, 12))
    source = torch.from_numpy(pixels.astype(np.float32))[None, None]
    wanted = torch.nn.functional.interpolate(source, (16, 12), mode="bilinear", antialias=True)[0] / 65535
    assert image.shape == (1, 16, 12)
    assert torch.allclose(image, wanted, atol=1.5 / 65535)
    plain = torch.nn.functional.interpolate(source, (16, 12), mode="bilinear")[0] / 65535
    assert not torch.allclose(image, plain, atol=0.05)


def test_no_resize_when_the_size_is_right(tmp_path):
    pixels = noise(1)
    np.testing.assert_array_equal(read_pixels(save(tmp_path / "a.png", pixels), pixels.shape), pixels)


@pytest.mark.parametrize("bright", [0, 7])
def test_mirai_orientation_puts_the_chest_wall_on_the_right(tmp_path, bright):
    pixels = np.ones((4, 8), dtype=np.uint16)
    pixels[:, bright] = 60000
    path = save(tmp_path / "a.png", pixels)
    turned = read_image(path, orientation="mirai")
    assert (turned[0, :, 7] > 0.9).all() and (turned[0, :, 0] < 0.1).all()
    assert torch.equal(turned, read_image(path)) == (bright == 7)


def test_equal_quarters_are_left_alone():
    pixels = np.tile(np.array([5, 1, 9, 0, 0, 0, 2, 4], dtype=np.uint16), (3, 1))
    assert chest_wall_right(pixels) is pixels


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.eye(8, dtype=np.uint8), "8 bits per pixel, 16 are needed"),
        (np.zeros((8, 8, 3), dtype=np.uint8), "colour, 16-bit grayscale is needed"),
        (np.zeros((8, 8, 4), dtype=np.uint8), "colour with transparency"),
        (np.zeros((8, 8), dtype=np.uint16), "blank, every pixel is 0"),
        (np.full((8, 8), 41, dtype=np.uint16), "blank, every pixel is 41"),
    ],
)
def test_what_is_no_mammogram_is_refused(tmp_path, pixels, message):
    path = save(tmp_path / "wrong.png", pixels)
    with pytest.raises(DataError, match=message) as refused:
        read_image(path)
    assert "wrong.png" in str(refused.value)


def test_unreadable_files_are_refused(tmp_path):
    whole = save(tmp_path / "whole.png", noise(2)).read_bytes()
    for name, content in {"text.png": b"no image at all, just some text", "cut.png": whole[:300]}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(DataError, match="No such file"):
        read_image(tmp_path / "missing.png")
    read_image(tmp_path / "whole.png")


def test_the_header_is_read_alone(tmp_path):
    path = save(tmp_path / "a.png", noise(3, (40, 30)))
    whole = path.read_bytes()
    path.write_bytes(whole[:26] + whole[-12:])  # no pixels between
    header = read_header(path)
    assert header == (40, 30, 16, "gray") and header.problem() is None
    start = time.perf_counter()
    for _ in range(200):
        read_header(path)
    assert (time.perf_counter() - start) / 200 < 1e-3


def test_a_file_cut_short_is_refused_by_its_end(tmp_path):
    path = save(tmp_path / "a.png", noise(3, (40, 30)))
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"a\.png: the PNG file is cut short"):
        read_header(path)


def test_real_mammograms(real_mammograms):
    for side, brighter in (("L", 0), ("R", 1)):
        path = real_mammograms / f"exam0_{side}-MLO.png"
        image = read_image(path, size=(256, 208))
        halves = image[0, :, :104].mean(), image[0, :, 104:].mean()
        assert image.shape == (1, 256, 208) and halves[brighter] > halves[1 - brighter]
        turned = read_image(path, size=(256, 208), orientation="mirai")
        assert turned[0, :, 104:].mean() > turned[0, :, :104].mean()
