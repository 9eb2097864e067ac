"""From the pixels of a DICOM mammogram to a model's image: the breast is cut out, fitted and scaled to 16 bits.

Grey values stay float32 until the last step. An 8-bit copy is only used to find the breast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medtrain_plugins.imaging.pixels import padding_of
from medtrain_plugins.mammography.cohort.images import WHITE, Pixels

if TYPE_CHECKING:
    from pydicom import Dataset

Threshold = int | Literal["otsu"]


def grey_values(dataset: Dataset) -> npt.NDArray[np.float32]:
    """The pixels of a single-frame grayscale DICOM image as shown to a reader, (H, W), bright tissue on dark ground.

    Modality LUT, VOI LUT or window (the first one), MONOCHROME1 inverted, pixel padding as dark as the darkest pixel or
    darker. Raises pydicom's errors for pixels that are missing, truncated or in an encoding without a decoder.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    from pydicom.pixels.utils import pixel_array

    stored = pixel_array(dataset)
    image = apply_voi_lut(apply_modality_lut(stored, dataset), dataset).astype(np.float32)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        image = image.max() - image
    outside = padding_of(dataset, stored)
    if outside is not None and not outside.all():
        image[outside] = np.minimum(image[outside], image[~outside].min())
    grey: npt.NDArray[np.float32] = image
    return grey


def to_uint8(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """`image` (H, W), not flat, stretched to 0..255 and truncated."""
    low, high = float(image.min()), float(image.max())
    return ((image.astype(np.float64) - low) * 255 / (high - low)).astype(np.uint8)


def largest_contour(proxy: npt.NDArray[np.uint8], threshold: Threshold = 0) -> npt.NDArray[np.bool_]:
    """The breast: the largest outer contour of pixels above the threshold, filled. (H, W) bool.

    threshold: grey value 0..254, or "otsu" for the best separation of dark and bright (Otsu 1979).
    """
    import cv2

    if threshold == "otsu":
        _, above = cv2.threshold(proxy, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    else:
        above = (proxy > threshold).astype(np.uint8)
    contours, _ = cv2.findContours(above, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros(proxy.shape, np.uint8)
    if contours:
        cv2.drawContours(filled, [max(contours, key=cv2.contourArea)], -1, 1, cv2.FILLED)
    return filled.astype(bool)


def fit(image: npt.NDArray[Any], size: tuple[int, int], laterality: str) -> npt.NDArray[Any]:
    """`image` (H, W) on a black canvas of `size` (rows, columns): as large as possible, with its aspect ratio.

    It lies at the top, at the right edge for laterality "R" (the chest wall of right breasts), else at the left. Areas
    are averaged; the dtype stays.
    """
    import cv2

    height, width = image.shape
    scale = min(size[0] / height, size[1] / width)
    rows, columns = max(round(height * scale), 1), max(round(width * scale), 1)
    canvas = np.zeros(size, image.dtype)
    left = size[1] - columns if laterality == "R" else 0
    canvas[:rows, left : left + columns] = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_AREA)
    return canvas


def to_uint16(image: npt.NDArray[Any]) -> Pixels:
    """`image` (H, W), not negative, scaled so that its maximum is 65535 and truncated."""
    return (image.astype(np.float64) * WHITE / float(image.max())).astype(np.uint16)


def model_image(
    image: npt.NDArray[np.float32], laterality: str, size: tuple[int, int], threshold: Threshold = 0
) -> Pixels:
    """A model's image of `size` (rows, columns), uint16, from grey values (H, W): breast on black, 0..65535.

    Raises ValueError for an image that is constant or not finite.
    """
    low, high = float(image.min()), float(image.max())
    if not np.isfinite(high - low):
        raise ValueError("some pixels are not finite")
    if low == high:
        raise ValueError(f"every pixel is {low:g}")
    breast = np.where(largest_contour(to_uint8(image), threshold), image - np.float32(low), np.float32(0))
    fitted = fit(breast, size, laterality)
    if fitted.min() == fitted.max():
        raise ValueError(f"every pixel is the same at {size[0]} x {size[1]} pixels")
    return to_uint16(fitted)
