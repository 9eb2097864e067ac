from __future__ import annotations

from typing import Any

import pytest
import torch
from medtrain_plugins.brain.data.extraction import cut, find_parts, windows_of
from medtrain_plugins.brain.model.inference import Inference, log_mean_probability, put_together
from medtrain_plugins.brain.options import ExtractionOptions, InferenceOptions
from torch import Tensor, nn
from torch.nn import functional


def inference(dense: bool, logits: bool = True, **options: Any) -> Inference:
    return Inference(InferenceOptions(**options), dense, logits)


def local(image: Tensor) -> Tensor:
    """A network whose voxels know nothing of each other: windows and slices of it must change nothing."""
    return torch.cat([image, 2 * image - 1], dim=1)


class Corner(nn.Module):
    """Says what lies in the first corner: not symmetric under any flip."""

    def forward(self, image: Tensor) -> Tensor:
        value = image[:, 0].flatten(1)[:, 0]
        return torch.stack([value, -value], dim=1)


@pytest.mark.parametrize("options", [{}, {"window": [5]}, {"window": [8, 5, 4], "blend": "constant", "overlap": 0.25}])
def test_windows_of_a_local_network_give_the_image_back(options: dict[str, Any]) -> None:
    image = torch.randn(2, 1, 11, 9, 7)
    torch.testing.assert_close(inference(True, **options)(local, image), local(image), rtol=1e-5, atol=1e-5)


def test_an_image_smaller_than_the_window_keeps_its_size() -> None:
    image = torch.randn(1, 1, 6, 6, 6)
    torch.testing.assert_close(inference(True, window=[8])(local, image), local(image), rtol=1e-5, atol=1e-5)


def test_windows_cover_every_voxel_and_stay_inside() -> None:
    for size, window, overlap in (([11, 9], [4, 4], 0.5), ([5, 8], [5, 3], 0.0), ([7, 7], [2, 6], 0.9)):
        seen = torch.zeros(size)
        for place in windows_of(size, window, overlap):
            part = seen[place]
            assert list(part.shape) == window
            part += 1
        assert (seen > 0).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_across_any_axis_are_put_back_in_place(axis: int) -> None:
    image = torch.randn(2, 1, 4, 5, 6)
    flat = nn.Conv2d(1, 2, 3, padding=1)
    found = inference(True, slice_axis=axis, batch_size=3)(flat, image)
    by_hand = torch.stack([flat(part) for part in image.unbind(axis + 2)], dim=axis + 2)
    torch.testing.assert_close(found, by_hand)


def test_parts_vote_with_probabilities_not_with_logits() -> None:
    image = torch.zeros(1, 1, 2, 4, 4)
    image[0, 0, 0], image[0, 0, 1] = 4.0, -0.2
    found = inference(False, slice_axis=0)(Corner(), image).softmax(dim=1)
    each = torch.stack([Corner()(part).softmax(dim=1) for part in image.unbind(2)])
    torch.testing.assert_close(found, each.mean(dim=0))
    logits = torch.randn(5, 2, 3)
    torch.testing.assert_close(log_mean_probability(logits).exp(), logits.softmax(dim=2).mean(dim=0))


@pytest.mark.parametrize("flips", [[0], [1, 2], [0, 1, 2]])
def test_mirror_images_are_flipped_back_exactly(flips: list[int]) -> None:
    image = torch.randn(1, 1, 4, 6, 5)
    found = inference(True, logits=False, flips=flips)(local, image)
    torch.testing.assert_close(found, local(image), rtol=0, atol=1e-6)

    # A network that is not symmetric: the result is, by construction, as mirrored as the image.
    lopsided = nn.Conv3d(1, 1, 3, padding=1)
    average = inference(True, logits=False, flips=flips)
    for axis in flips:
        torch.testing.assert_close(
            average(lopsided, image.flip(axis + 2)), average(lopsided, image).flip(axis + 2), rtol=1e-5, atol=1e-6
        )


def test_mirror_images_of_a_classifier_vote() -> None:
    image = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    found = inference(False, flips=[0, 1, 2])(Corner(), image).softmax(dim=1)
    votes = torch.stack([torch.tensor([[float(value), -float(value)]]) for value in range(8)]).softmax(dim=2)
    torch.testing.assert_close(found, votes.mean(dim=0))


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ({"window": [0]}, {"flips": [3]}, {"flips": [1, 1]}, {"overlap": 1.0}):
        with pytest.raises(ValueError, match=r"window|flips|overlap"):
            InferenceOptions(**options)


@pytest.mark.parametrize(
    "extraction",
    [
        {"kind": "patch", "size": 4, "overlap": 1},
        {"kind": "patch", "size": [5, 3, 4], "padding": "none"},
        {"kind": "slice", "direction": 1},
        {"kind": "slice", "direction": 0, "squeeze": False},
    ],
)
def test_parts_are_put_together_where_they_were_cut(extraction: dict[str, Any]) -> None:
    options = ExtractionOptions(**extraction)
    image = torch.randn(2, 9, 7, 6)
    places = find_parts(options, (9, 7, 6))
    parts = [torch.from_numpy(cut(image.numpy(), place, options).copy()) for place in places]
    torch.testing.assert_close(put_together(parts, places, image.shape[1:]), image)
    assert put_together(parts[1:], places[1:], image.shape[1:]).isnan().any()


def test_the_window_limits_what_a_classifier_sees() -> None:
    image = torch.randn(1, 1, 8, 8, 8)
    seen: list[Any] = []

    def network(part: Tensor) -> Tensor:
        seen.append(part.shape[2:])
        return functional.adaptive_avg_pool3d(part, 1).flatten(1).repeat(1, 2)

    assert inference(False, window=[4], batch_size=3)(network, image).shape == (1, 2)
    assert set(seen) == {(4, 4, 4)}
