"""Asymmetry: golden values, mirror images, places, missing views, the scale set by the first batch."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from medtrain_plugins.vmra_mar.asymmetry import Asymmetry, AsymmetryDetector, track, windows
from torch import distributed
from torch import multiprocessing as mp
from torch.nn import functional as F
from torch.testing import assert_close


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    """Left or right features (B, T, 2, C, h, w)."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def everywhere(features: torch.Tensor) -> torch.Tensor:
    return torch.ones(features.shape[:3], dtype=torch.bool)


def detector(**options) -> AsymmetryDetector:
    return AsymmetryDetector(6, **options).double()


def test_golden_values(cases):
    case = cases("sad")
    views, seen = case.tensor("feature_maps"), case.tensor("view_mask", torch.bool)
    found = AsymmetryDetector(3, mean=2.0, std=0.7, compat="reference").double().eval()
    with torch.no_grad():
        left, right = views[:, :, 0::2], views[:, :, 1::2].flip(-1)
        assert_close(found.heat_maps(left, right)[0, 0, 0], heat(case), rtol=1e-6, atol=1e-6)
        found.cc_stretch_params.copy_(case.tensor("cc_stretch"))
        found.mlo_stretch_params.copy_(case.tensor("mlo_stretch"))
        scores, places, valid = found(left, right, seen[:, :, 0::2] & seen[:, :, 1::2])
    assert_close(scores, case.tensor("exam_scores"), rtol=1e-6, atol=1e-6)
    assert torch.equal(places, case.tensor("coords"))
    assert torch.equal(valid, case.tensor("coord_valid", torch.bool))


def heat(case) -> torch.Tensor:
    return torch.tensor(case.outputs["unstretched_pair01_t0"]["heatmap"], dtype=torch.float64)[0]


@pytest.mark.parametrize(("window", "name"), [(5, "window5"), (64, "window64")])
def test_tracker_has_golden_values(cases, window, name):
    case = cases("lat")
    seen = case.tensor("coord_valid", torch.bool) & case.tensor("exam_mask", torch.bool)
    asymmetry = Asymmetry(case.tensor("scores"), case.tensor("coords"), seen)
    assert_close(track(asymmetry, 0.4 * window, 1.0).squeeze(1), case.tensor(name), rtol=1e-6, atol=1e-6)


def test_tracker_looks_past_missing_visits():
    scores = torch.tensor([[0.2, 0.0, 0.8, 0.3]])
    places = torch.tensor([[[1.0, 1.0], [9.0, 9.0], [1.0, 2.0], [4.0, 4.0]]])
    valid = torch.tensor([[True, False, True, True]])
    expected = (2 * 0.2 + 2 * 0.8 + 0.3) / 5
    assert_close(track(Asymmetry(scores, places, valid), 2.0, 1.0), torch.tensor([[expected]]))
    kept = valid[0]
    assert_close(
        track(Asymmetry(scores[:, kept], places[:, kept], valid[:, kept]), 2.0, 1.0), torch.tensor([[expected]])
    )
    nothing = Asymmetry(scores, places, torch.zeros_like(valid))
    assert track(nothing, 2.0, 1.0).item() == 0
    assert track(Asymmetry(scores, places, valid), 2.0, 0.0).item() == pytest.approx(1.3 / 3)


@pytest.mark.parametrize("size", [(64, 52), (11, 10), (3, 2), (1, 1), (7, 9)])
def test_mirror_images(size):
    found = detector().eval()
    left, right = maps(1, 2, 2, 6, *size), maps(1, 2, 2, 6, *size, seed=1)
    with torch.no_grad():
        assert found.heat_maps(left, left).abs().max() == 0
        scores = found(left, right, everywhere(left)).scores
        assert torch.equal(found(right, left, everywhere(left)).scores, scores)
        # The woman seen in a mirror: right becomes left, and all columns run the other way.
        mirrored = found(right.flip(-1), left.flip(-1), everywhere(left))
    assert torch.equal(mirrored.scores, scores)


def test_grid():
    assert detector().grid(64, 52) == (5, 5)
    assert detector().grid(3, 2) == (3, 2)
    for size in range(1, 70):
        spans = windows(size, 5, "fixed")
        assert len(spans) == min(5, size)
        assert spans[0][0] == 0 and spans[-1][1] == size
        assert all(before[1] >= after[0] for before, after in itertools.pairwise(spans))
        assert spans == [(size - end, size - start) for start, end in reversed(spans)]
        pooled = F.max_pool1d(torch.arange(1.0, size + 1).view(1, 1, -1), max(size // 5, 1))
        assert [float(end) for _, end in windows(size, 5, "reference")] == pooled.flatten().tolist()


def test_the_place_is_where_a_difference_was_put():
    found = detector().eval()
    left = maps(1, 2, 2, 6, 64, 52)
    right = left.clone()
    right[0, 0, 1, :, 40, 3] += 3  # first visit, MLO: fourth of five rows, first of five columns
    right[0, 1, 0, 2, 63, 51] += 1  # second visit, CC: what windows from the top left leave out
    with torch.no_grad():
        asymmetry = found(left, right, everywhere(left))
        raw = found.heat_maps(left, right)
        published = detector(compat="reference").heat_maps(left, right)
    assert asymmetry.places.tolist() == [[[3, 0], [4, 4]]]
    assert raw[0, 0, 1].max().item() == pytest.approx(3 * 6**0.5)
    assert raw[0, 1, 0].max().item() == pytest.approx(1)
    assert published[0, 1, 0].max() == 0


def test_missing_views():
    found = detector(mean=2.0, std=0.5).eval()
    left, right = maps(1, 3, 2, 6, 10, 10), maps(1, 3, 2, 6, 10, 10, seed=1)
    seen = torch.tensor([[[True, False], [False, True], [False, False]]])
    with torch.no_grad():
        part = found(left, right, seen)
        whole = [
            found(left[:, :, i : i + 1].repeat(1, 1, 2, 1, 1, 1), right[:, :, [i, i]], everywhere(left)) for i in (0, 1)
        ]
        other = found(left.masked_fill(~seen[..., None, None, None], 7.0), right, seen)
    assert_close(part.scores[0, :2], torch.stack([whole[0].scores[0, 0], whole[1].scores[0, 1]]))
    assert torch.equal(part.places[0, 0], whole[0].places[0, 0])
    assert part.valid.tolist() == [[True, True, False]]
    assert part.scores[0, 2] == 0 and (part.places[0, 2] == 0).all()
    for ours, theirs in zip(part, other, strict=True):
        assert torch.equal(ours, theirs)


def exams(seed: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    left, right = maps(count, 2, 2, 6, 10, 10, seed=seed), maps(count, 2, 2, 6, 10, 10, seed=seed + 100)
    return left, right, everywhere(left)


def test_first_training_batch_sets_the_scale_and_the_branch_comes_alive():
    found = detector()
    left, right, seen = exams(0)
    inert = found.eval()(left, right, seen).scores
    assert inert.max() < 0.002
    assert found.learned_asym_mean == 2000 and found.learned_asym_std == 300  # evaluation does not set it

    with torch.no_grad():
        raw = found.heat_maps(left, right).flatten(3).amax(-1)
    scores = found.train()(left, right, seen).scores
    assert found.learned_asym_mean.item() == pytest.approx(raw.mean().item(), rel=1e-5)
    assert found.learned_asym_std.item() == pytest.approx(
        max(raw.std(correction=0), 0.05 * raw.mean()).item(), rel=1e-5
    )
    assert scores.min() > 0.1 and scores.max() < 0.9
    scores.sum().backward()
    assert found.learned_asym_mean.grad.abs() > 1e-2
    assert found.cc_stretch_params.grad.abs().min() > 1e-4

    kept = copy.deepcopy(found.state_dict())
    found(*exams(1))  # once
    resumed = detector()
    resumed.load_state_dict(kept)
    resumed.train()(*exams(2))  # and not again after a checkpoint
    for key, tensor in kept.items():
        assert torch.equal(found.state_dict()[key], tensor) and torch.equal(resumed.state_dict()[key], tensor)
    assert kept.keys() == {"cc_stretch_params", "mlo_stretch_params", "learned_asym_mean", "learned_asym_std"}


def test_what_does_not_set_the_scale():
    left, right, seen = exams(0)
    published, chosen, waiting = detector(compat="reference"), detector(mean=20.0, std=3.0), detector()
    for found in (published, chosen):
        before = copy.deepcopy(found.state_dict())
        found.train()(left, right, seen)
        assert all(torch.equal(tensor, before[key]) for key, tensor in found.state_dict().items())
    waiting.train()(left, left, seen)  # no difference
    waiting(left, right, torch.zeros_like(seen))  # no pair
    with torch.no_grad():
        waiting(left, right, seen)  # no training
    assert waiting.learned_asym_mean == 2000
    one_pair = torch.zeros_like(seen)
    one_pair[0, 0, 0] = True
    waiting(left, right, one_pair)
    assert waiting.learned_asym_std.item() == pytest.approx(0.05 * waiting.learned_asym_mean.item(), rel=1e-5)


def half_of_the_batch(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    left, right, seen = exams(0)
    mine = slice(0, 1) if rank == 0 else slice(1, 4)
    found = detector()
    found.train()(left[mine], right[mine], seen[mine])
    torch.save(found.state_dict(), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_set_the_scale_of_one(tmp_path):
    mp.spawn(half_of_the_batch, (str(tmp_path),), nprocs=2)
    alone = detector()
    alone.train()(*exams(0))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for key, tensor in alone.state_dict().items():
        assert torch.equal(first[key], second[key])
        assert_close(first[key], tensor, rtol=1e-6, atol=0)
