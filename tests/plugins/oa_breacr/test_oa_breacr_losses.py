"""The loss of OA-BreaCR: golden values, plain transcriptions, and that its terms add up over batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from medtrain_plugins.oa_breacr.distances import DISTANCES
from medtrain_plugins.oa_breacr.losses import (
    OABreaCRLoss,
    class_bce,
    class_targets,
    divergence,
    exam_labels,
    last_known_class,
    mean_variance,
    ordinal_triplets,
)
from medtrain_plugins.oa_breacr.options import Distance
from torch import Tensor
from torch.testing import assert_close

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "oa_breacr.json").read_text())


def tensors(case: str) -> dict[str, Tensor]:
    found = {name: torch.tensor(value) for name, value in GOLDEN[case]["inputs"].items()}
    return found | {"logits": torch.tensor(GOLDEN[case]["inputs"]["logits"], dtype=torch.float64)}


def total(terms: dict[str, Any]) -> Tensor:
    values = [term if isinstance(term, Tensor) else term[0] / term[1].clamp(min=1) for term in terms.values()]
    return torch.stack([value.double() for value in values]).sum()


@pytest.mark.parametrize(("case", "compat"), [("bce_reference", "reference"), ("bce_published", "fixed")])
def test_class_bce(case, compat):
    given, expected = tensors(f"oa_breacr_{case}"), GOLDEN[f"oa_breacr_{case}"]["outputs"]
    target, mask = class_targets(exam_labels(given["years_to_cancer"], given["years_to_last_followup"]), compat)
    assert target.tolist() == expected["y_seq"]
    assert mask.tolist() == expected["y_mask"]
    value = 2 * class_bce(given["logits"], target, mask) / mask.sum()
    assert value.item() == pytest.approx(expected["loss"], rel=1e-6)
    samples = given["logits"].expand(7, -1, -1)
    assert 2 * class_bce(samples, target, mask).item() / mask.sum() == pytest.approx(expected["loss"], rel=1e-6)


def test_class_bce_of_certain_logits_stays_finite():
    logits = torch.tensor([[200.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 300.0]], requires_grad=True)
    target = torch.eye(6)[[1, 5]]
    value = class_bce(logits, target, torch.ones(2, 6))
    value.backward()
    # Class 0 at probability 1 though absent, class 1 absent though its class: about 200 each. The second row is right.
    assert value.item() == pytest.approx(400 - math.log(5), rel=1e-4)
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0].abs().max() > 0.5


def test_mean_variance():
    given, expected = tensors("mean_variance_loss"), GOLDEN["mean_variance_loss"]["outputs"]
    labels = exam_labels(given["years_to_cancer"], given["years_to_last_followup"])
    rows = labels.complete.double()
    value = mean_variance(given["logits"], labels.year, rows) / rows.sum()
    assert value.item() == pytest.approx(expected["loss"], rel=1e-6)

    loss = OABreaCRLoss(class_weights=given["weights"].tolist())
    weighted = loss.row_weights(labels)
    value = mean_variance(given["logits"], labels.year, weighted) / weighted.sum()
    assert value.item() == pytest.approx(expected["loss_weighted"], rel=1e-6)
    assert mean_variance(given["logits"], labels.year, 0 * rows).item() == expected["loss_all_dropped"]


@pytest.mark.parametrize("name", DISTANCES)
def test_distances(name):
    case = GOLDEN["gaussian_distances"]
    given = (torch.tensor(case["inputs"][part], dtype=torch.float64) for part in ("u1", "s1", "u2", "s2"))
    expected = torch.tensor(case["outputs"][name], dtype=torch.float64)
    assert_close(DISTANCES[name](*given), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", DISTANCES)
def test_equal_and_far_gaussians_have_finite_distances_and_gradients(name):
    u = torch.tensor([[0.3, -1.0], [0.3, -1.0]], requires_grad=True)
    v = torch.tensor([[0.5, 2.0], [0.5, 2.0]], requires_grad=True)
    other = torch.tensor([[0.3, -1.0], [900.0, -700.0]])
    found = DISTANCES[name](u, v, other, v)
    assert found[0].item() == pytest.approx(0, abs=1e-3)
    assert found[1] > 0.9
    found.sum().backward()
    assert u.grad is not None and u.grad.isfinite().all()
    assert v.grad is not None and v.grad.isfinite().all()


def test_options_offer_every_distance():
    assert set(get_args(Distance)) == set(DISTANCES)


def golden_total() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    given = GOLDEN["oa_breacr_total_loss_reference"]["inputs"]
    outputs = {name: torch.tensor(value, dtype=torch.float64) for name, value in given["outputs"].items()}
    return outputs, {name: torch.tensor(value) for name, value in given["batch"].items()}


def test_reference_total():
    value = total(OABreaCRLoss(compat="reference")(*golden_total())).item()
    assert value == pytest.approx(GOLDEN["oa_breacr_total_loss_reference"]["outputs"]["loss"], abs=1e-6)


def test_each_part_has_its_factor():
    outputs, batch = golden_total()
    plain = OABreaCRLoss()(outputs, batch)
    doubled = OABreaCRLoss(bce_weight=4.0, mean_weight=0.4, variance_weight=0.1, alpha=2e-5, beta=2e-4)(outputs, batch)
    for name, term in plain.items():
        if name == "registration":
            assert doubled[name] is outputs["loss"]
        elif isinstance(term, Tensor):
            assert_close(doubled[name], 2 * term)
        else:
            assert_close(doubled[name][0], 2 * term[0])
    assert set(plain) - set(OABreaCRLoss(use_poe=False)(outputs, batch)) == {"final_divergence", "final_triplets"}
    assert OABreaCRLoss(margin=50.0)(outputs, batch)["final_triplets"] > plain["final_triplets"]


def slow_triplets(
    emb: Tensor, log_var: Tensor, years: list[int], keep: list[bool], distance: Any, margin: float
) -> float:
    """The published rule, row by row."""
    rows = [i for i, kept in enumerate(keep) if kept]
    u, v, year = emb[rows], log_var[rows].exp(), [years[i] for i in rows]
    violations = []
    for i in range(len(rows)):
        second = (i + 1) % len(rows)
        to_second = abs(year[i] - year[second])
        deltas = []
        for j in range(len(rows)):
            delta = abs(abs(year[i] - year[j]) - to_second) + (1000 if i == j else 0)
            deltas.append(delta if delta else 700)
        third = deltas.index(min(deltas))
        sign = (to_second > abs(year[i] - year[third])) - (to_second < abs(year[i] - year[third]))
        pair = [distance(u[i : i + 1], v[i : i + 1], u[[k]], v[[k]]).item() for k in (third, second)]
        hinge = (pair[0] - pair[1]) * sign + margin
        if sign and hinge > 0:
            violations.append(hinge)
    return sum(violations) / len(violations) if violations else 0.0


@pytest.mark.parametrize("name", DISTANCES)
def test_triplets_follow_the_rule_row_by_row(name):
    generator = torch.Generator().manual_seed(3)
    found = []
    for rows in (1, 2, 3, 5, 9, 16):
        for _ in range(8):
            emb, log_var = torch.randn(2, rows, 3, generator=generator, dtype=torch.float64)
            year = torch.randint(0, 6, (rows,), generator=generator)
            keep = torch.rand(rows, generator=generator) < 0.7
            value = ordinal_triplets(emb, log_var, year, keep, DISTANCES[name], 1.5).item()
            expected = slow_triplets(emb, log_var, year.tolist(), keep.tolist(), DISTANCES[name], 1.5)
            assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
            found.append(value)
    assert sum(value > 0 for value in found) > 15


@pytest.mark.parametrize("name", DISTANCES)
def test_triplets_of_equal_embeddings_have_a_gradient(name):
    emb = torch.zeros(6, 4, requires_grad=True)
    log_var = torch.zeros(6, 4, requires_grad=True)
    year, keep = torch.tensor([0, 1, 5, 5, 2, 4]), torch.tensor([1, 1, 0, 1, 0, 1], dtype=torch.bool)
    ordinal_triplets(emb, log_var, year, keep, DISTANCES[name]).backward()
    assert emb.grad is not None and emb.grad.isfinite().all()
    assert log_var.grad is not None and log_var.grad.isfinite().all()


def test_divergence_from_the_standard_normal():
    torch.manual_seed(0)
    emb, log_var = torch.randn(2, 3, 4)
    normal = torch.distributions.Normal(emb, (log_var / 2).exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).sum()
    assert_close(divergence(emb, log_var), expected)


def test_follow_up_years_are_classes_from_zero():
    years = torch.tensor([1, 2, 4, 5, 9])
    assert last_known_class(years).tolist() == [0, 1, 3, 5, 9]
    assert last_known_class(years, "reference").tolist() == [1, 2, 4, 5, 9]
    free = torch.full((5,), 99)
    labels = exam_labels(free, last_known_class(years))
    # As many classes are supervised as years were seen; all of them, and the last one, from five years on.
    assert class_targets(labels)[1].sum(dim=1).tolist() == [1, 2, 4, 6, 6]
    assert labels.complete.tolist() == [False, False, False, True, True]


def best_risk(compat: str, years_to_followup: int) -> float:
    """The five-year risk that minimises the cross-entropy of a woman without cancer."""
    labels = exam_labels(torch.tensor([99]), last_known_class(torch.tensor([years_to_followup]), compat))
    target, mask = class_targets(labels, compat)
    logits = torch.zeros(1, 6, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        class_bce(logits, target, mask).backward()
        optimizer.step()
    return 1 - logits.softmax(dim=1)[0, 5].item()


def test_a_woman_known_to_be_healthy_is_driven_to_no_risk():
    assert best_risk("fixed", 5) < 0.01
    assert best_risk("fixed", 8) < 0.01
    assert best_risk("reference", 5) == pytest.approx(5 / 6, abs=1e-3)


def random_case(exams: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(0)
    outputs = {name: torch.randn(exams, 6, dtype=torch.float64) for name in ("current", "prior", "difference")}
    outputs["final"] = torch.randn(4, exams, 6, dtype=torch.float64)
    outputs |= {name: torch.randn(exams, 8, dtype=torch.float64) for name in ("emb_final", "log_var_final")}
    outputs["loss"] = torch.tensor(0.1, dtype=torch.float64)
    batch = {}
    for suffix in ("", "_prior"):
        batch[f"years_to_cancer{suffix}"] = torch.randint(0, 9, (exams,))
        batch[f"years_to_last_followup{suffix}"] = torch.randint(1, 9, (exams,))
    return outputs, batch


def part(case: tuple[dict[str, Tensor], dict[str, Tensor]], rows: slice) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    outputs = {name: v[:, rows] if name == "final" else v[rows] if v.ndim else v for name, v in case[0].items()}
    return outputs, {name: value[rows] for name, value in case[1].items()}


@pytest.mark.parametrize("compat", ["fixed", "reference"])
def test_parts_of_a_batch_add_up_to_the_whole(compat):
    loss, case = OABreaCRLoss(compat=compat, class_weights=(1.0, 2.0, 0.5, 1.5, 1.0, 0.25)), random_case(11)
    whole = loss(*case)
    parts = [loss(*part(case, rows)) for rows in (slice(0, 4), slice(4, 11))]
    sums = {name for name, term in whole.items() if not isinstance(term, Tensor)}
    assert set(whole) - sums == {"registration", "final_triplets"}
    for name in sums:
        for entry in (0, 1):
            assert_close(sum(terms[name][entry] for terms in parts), whole[name][entry])


def test_weights_are_known_before_the_forward_pass():
    loss, (outputs, batch) = OABreaCRLoss(), random_case(7)
    weights, terms = loss.weights(batch), loss(outputs, batch)
    assert weights.keys() == terms.keys()
    for name, term in terms.items():
        assert weights[name].item() == (7 if isinstance(term, Tensor) else term[1].item())


def test_a_batch_of_censored_exams_gives_zeros_with_graph():
    outputs, batch = random_case(3)
    batch |= {name: torch.tensor([99, 6, 5]) for name in ("years_to_cancer", "years_to_cancer_prior")}
    batch |= {f"years_to_last_followup{suffix}": torch.tensor([1, 2, 4]) for suffix in ("", "_prior")}
    outputs = {name: value.requires_grad_() for name, value in outputs.items()}
    terms = OABreaCRLoss()(outputs, batch)
    assert terms["final_mean_variance"][0].item() == terms["final_mean_variance"][1].item() == 0
    assert terms["final_triplets"].item() == 0
    assert terms["final_bce"][1].item() == 1 + 2 + 4
    total(terms).backward()
    assert all(value.grad.isfinite().all() for value in outputs.values())


def test_the_batch_is_left_as_it_was():
    outputs, batch = random_case(6)
    before = {name: value.clone() for name, value in batch.items()}
    OABreaCRLoss()(outputs, batch)
    OABreaCRLoss(compat="reference")(outputs, batch)
    assert all(torch.equal(batch[name], value) for name, value in before.items())


def test_half_precision_outputs_are_summed_in_single():
    outputs, batch = random_case(6)
    half = OABreaCRLoss()({name: value.to(torch.bfloat16) for name, value in outputs.items()}, batch)
    assert half["final_bce"][0].dtype == torch.float32
    assert_close(total(half), total(OABreaCRLoss()(outputs, batch)), rtol=0.02, atol=0.0)


@pytest.mark.parametrize("name", DISTANCES)
def test_nothing_depends_on_values_that_the_host_would_have_to_wait_for(name):
    """Tensors on the meta device have no values: asking for one is an error."""
    outputs, batch = ({key: value.to("meta") for key, value in part.items()} for part in random_case(6))
    for compat in ("fixed", "reference"):
        loss = OABreaCRLoss(compat=compat, distance=name, class_weights=(1.0, 2.0, 0.5, 1.5, 1.0, 0.25))
        assert total(loss(outputs, batch)).shape == ()
        assert all(weight.device.type == "meta" for weight in loss.weights(batch).values())
