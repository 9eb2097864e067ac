"""Hard negatives."""

from __future__ import annotations

import pytest
import torch
from medtrain_plugins.nodule.model.losses import focal
from medtrain_plugins.nodule.model.mining import HardNegatives
from nodule_golden import CASES, close, tensor

MEANS = [name for name in CASES["ohem"] if name.startswith(("focal", "soft", "grad"))]


@pytest.mark.parametrize("name", MEANS)
def test_published_cases_pool_the_batch_as_one_sample(name: str) -> None:
    case = CASES["ohem"][name]
    params = dict(case["params"])
    reduction = params.pop("reduction", "mean")
    logits, target = tensor(case, "logits"), tensor(case, "targets")
    total, count = HardNegatives(**params)(focal(logits, target).reshape(1, -1), target.reshape(1, -1))
    found = total if reduction == "sum" else total / count
    if name.startswith("grad"):
        found.backward()
        found = logits.grad
    close(found, case)


@pytest.mark.parametrize("name", [name for name in CASES["ohem"] if name.startswith("stats")])
def test_counts(name: str) -> None:
    case = CASES["ohem"][name]
    counts = HardNegatives(**case["params"]).counts(tensor(case, "targets")[None])
    assert [int(n) for n in (*counts, counts.selected)] == list(case["expected"].values())


def test_every_sample_has_its_own_hard_negatives() -> None:
    target = torch.zeros(2, 10)
    target[:, 0] = 1
    losses = torch.arange(20.0).reshape(2, 10)
    selected = HardNegatives(ratio=2, min_negatives=0).select(losses, target)
    assert [row.nonzero().flatten().tolist() for row in selected] == [[0, 8, 9], [0, 8, 9]]


def test_hardest_fraction() -> None:
    target = torch.zeros(1, 11)
    target[0, 0] = 1
    losses = torch.arange(11.0)[None]
    half = HardNegatives(ratio=None, hardest_fraction=0.5).select(losses, target)
    assert half[0].nonzero().flatten().tolist() == [0, 6, 7, 8, 9, 10]
    limited = HardNegatives(ratio=9, hardest_fraction=0.3, min_negatives=0)
    assert int(limited.counts(target).hard_negatives) == 3
    assert int(HardNegatives(ratio=2, hardest_fraction=0.5, min_negatives=0).counts(target).hard_negatives) == 2


def test_nothing_selected_is_a_zero_with_graph() -> None:
    losses = torch.ones(1, 8, requires_grad=True)
    total, count = HardNegatives(ratio=3, min_negatives=0)(losses, torch.zeros(1, 8))
    total.backward()
    assert float(total.detach()) == 0 and int(count) == 0 and losses.grad is not None


def test_unknown_entries_are_neither() -> None:
    target = torch.tensor([[1.0, 0.0, float("nan"), 0.0]])
    selected = HardNegatives(ratio=5, min_negatives=0).select(torch.tensor([[1.0, 2, 9, 3]]), target)
    assert selected.tolist() == [[True, True, False, True]]


def test_threshold_of_positives() -> None:
    target = torch.tensor([[0.6, 0.3, 0.0]])
    assert int(HardNegatives(threshold=0.2).counts(target).positives) == 2


@pytest.mark.parametrize("settings", [{"ratio": 0}, {"hardest_fraction": 0}, {"min_negatives": -1}])
def test_settings_are_checked(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="hard negatives"):
        HardNegatives(**settings)  # type: ignore[arg-type]
