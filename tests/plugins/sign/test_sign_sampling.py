"""Clips of any length as a fixed number of frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from keypoint_files import frames, lose
from medtrain_plugins.sign.data.augmentation import ClipAugmentation
from medtrain_plugins.sign.data.sampling import positions, sample

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "sign.json").read_text())["sampling"]


def counted(*lengths: int) -> torch.Tensor:
    """Clips end to end whose frame k has the value k."""
    return torch.cat([torch.arange(length) for length in lengths]).float()[:, None].repeat(1, 736)


@pytest.mark.parametrize("length", GOLDEN)
def test_golden_places(length: str) -> None:
    lengths = torch.tensor([int(length)])
    places = positions(lengths, 50)
    values = sample(counted(int(length)), lengths, places, "reference")
    first, last = GOLDEN[length]
    assert places[0, : len(first)].tolist() == pytest.approx(first, abs=1e-9)
    assert places[0, -len(last) :].tolist() == pytest.approx(last, abs=1e-9)
    assert values.shape == (1, 50, 736)
    assert values[0, :, 735].tolist() == pytest.approx(places[0].tolist(), abs=1e-5)


def test_several_clips_at_once_are_each_alone() -> None:
    values = sample(counted(1, 30, 7), torch.tensor([1, 30, 7]), positions(torch.tensor([1, 30, 7]), 10), "reference")
    for row, length in enumerate((1, 30, 7)):
        alone = torch.tensor([length])
        assert torch.equal(values[row], sample(counted(length), alone, positions(alone, 10), "reference")[0])
    assert not values[0].any()


@pytest.mark.parametrize("length", [1, 13, 50, 120])
def test_jitter_stays_in_the_middle_of_its_part(length: int) -> None:
    drawn = ClipAugmentation(50).draw(torch.Generator().manual_seed(1))["uniform"][6:]
    jittered = positions(torch.tensor([length]), 50, 0.5 + 0.8 * (drawn[None] - 0.5))[0]
    width = length / 50
    parts = torch.arange(50) * width
    low, high = parts + 0.1 * width, parts + 0.9 * width
    last = length - 1 - 1e-6
    assert (jittered >= low.clamp(max=max(last, 0)) - 1e-5).all() and (jittered <= high + 1e-5).all()
    assert jittered.min() >= 0 and jittered.max() <= max(last, 0)
    assert drawn.unique().numel() == 50  # each frame its own draw


def test_present_never_blends_a_missing_hand() -> None:
    clip = lose(frames(4, 3), "lh", [1])
    clip = lose(clip, "rh", [0, 1])
    packed = torch.from_numpy(clip.reshape(4, -1))
    lengths, places = torch.tensor([4]), torch.tensor([[0.25, 1.75, 2.5]])
    blended = sample(packed, lengths, places, "reference")[0].view(3, 184, 4).numpy()
    present = sample(packed, lengths, places, "present")[0].view(3, 184, 4).numpy()
    assert blended[0, 170] == pytest.approx(0.75 * clip[0, 170], rel=1e-5)  # shrunk towards zero, v included
    assert present[0, 170] == pytest.approx(clip[0, 170])
    assert present[1, 170] == pytest.approx(clip[2, 170])
    assert not present[0, 150].any()  # missing in both frames
    assert present[2] == pytest.approx(blended[2])  # seen in both: the same
    assert np.array_equal(present[:, :142], blended[:, :142])
