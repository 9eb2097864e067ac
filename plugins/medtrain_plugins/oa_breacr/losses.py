"""The loss of OA-BreaCR: the time of the cancer as one of six ordered classes.

Class c = 0..4 is cancer in year c + 1, class 5 none within five years. A head is (.., B, 6) logits: the dimensions
before B are stochastic samples of the same B exams, and the loss is their mean.

Source: "Ordinal learning: longitudinal attention alignment model for predicting time to future breast cancer events
from mammograms", 2024; the embedding's part from "Learning probabilistic ordinal embeddings for uncertainty-aware
regression", 2021, the mean-variance loss from "Mean-variance loss for deep age estimation from a face", 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medtrain_plugins.mammography.model.layers import Compat
from medtrain_plugins.oa_breacr.distances import DISTANCES, Distance
from medtrain_plugins.oa_breacr.model import HEAD_LABELS, N_CLASSES, OABreaCR

LAST = N_CLASSES - 1  # the class without cancer


class ExamLabels(NamedTuple):
    """The known outcomes of B exams.

    year: (B,) int64, the class. last_known: (B,) int64, the last class whose outcome is known. complete: (B,) bool,
    False for exams that were lost to follow-up before their class was known.
    """

    year: Tensor
    last_known: Tensor
    complete: Tensor


def exam_labels(years_to_cancer: Tensor, last_known: Tensor) -> ExamLabels:
    """Labels from the 0-based year of the cancer (B,), 5 or more for none, and the last class known (B,)."""
    year = years_to_cancer.long().clamp(max=LAST)
    return ExamLabels(year, last_known, (year < LAST) | (last_known >= LAST))


def last_known_class(years_to_followup: Tensor, compat: Compat = "fixed") -> Tensor:
    """The last class with a known outcome after years of follow-up (B,), from 1: class 0 after 1 year.

    All classes are known from five years on: a woman without cancer in the five years is in class 5. In "reference",
    one year means classes 0 and 1, as in the published code.
    """
    years = years_to_followup.long()
    return years if compat == "reference" else torch.where(years < LAST, years - 1, years)


def class_targets(labels: ExamLabels, compat: Compat = "fixed") -> tuple[Tensor, Tensor]:
    """Target and mask (B, 6) float32 of the cross-entropy.

    The target is the class, and the mask leaves out unknown classes of a censored exam. "reference" has no class
    without cancer: the target of such an exam is zero everywhere, for any follow-up, and for the others the classes
    after their own are left out.
    """
    classes = torch.arange(N_CLASSES, device=labels.year.device)
    year = labels.year.unsqueeze(1)
    target, event = classes == year, year < LAST
    known = labels.complete.unsqueeze(1) | (classes <= labels.last_known.unsqueeze(1))
    if compat == "reference":
        target, known = target & event, known & (~event | (classes <= year))
    return target.float(), known.float()


def class_bce(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of each class's probability, summed over the known entries; the mean over samples.

    logits (.., B, 6), target and mask (B, 6); a scalar. Probabilities come from a softmax, and their complements are
    the sums of the other classes, so neither is rounded to zero before its logarithm.
    """
    own = torch.eye(N_CLASSES, dtype=torch.bool, device=logits.device)
    total = logits.logsumexp(dim=-1, keepdim=True)
    others = logits.unsqueeze(-2).masked_fill(own, -torch.inf).logsumexp(dim=-1)
    entries = -torch.where(target > 0, logits - total, others - total)
    return _mean_over_samples((entries * mask).sum(dim=-1)).sum()


def mean_variance(
    logits: Tensor, year: Tensor, row_weights: Tensor, mean_weight: float = 0.2, variance_weight: float = 0.05
) -> Tensor:
    """Squared error of the expected class and variance of the classes, summed over exams; the mean over samples.

    logits (.., B, 6), year (B,), row_weights (B,), zero for ignored exams; a scalar, to be divided by the weights' sum.
    """
    probabilities = logits.softmax(dim=-1)
    classes = torch.arange(N_CLASSES, device=logits.device, dtype=logits.dtype)
    mean = (probabilities * classes).sum(dim=-1)
    variance = (probabilities * (classes - mean.unsqueeze(-1)).square()).sum(dim=-1)
    rows = mean_weight / 2 * (mean - year).square() + variance_weight * variance
    return _mean_over_samples(rows * row_weights).sum()


def divergence(emb: Tensor, log_var: Tensor) -> Tensor:
    """Divergence of the Gaussians (B, D) from the standard one, summed over exams: a scalar, to be divided by B."""
    return (emb.square() + log_var.exp() - log_var - 1).sum() / 2


# The third exam of a triplet: its distance in years differs least from the second's, but not by zero, which gives no
# order; never the anchor, nor an ignored exam.
SAME, ANCHOR, EXCLUDED = 700, 1000, 10_000


def ordinal_triplets(
    emb: Tensor, log_var: Tensor, year: Tensor, keep: Tensor, distance: Distance, margin: float = 2.0
) -> Tensor:
    """The violation of the order of years by the embeddings of an anchor and two other exams: a scalar.

    emb, log_var (B, D), year (B,), keep (B,) bool. Each kept exam is an anchor, the next one (after the last, the
    first) its second; the third has another distance in years. The mean over triplets that violate the order or its
    margin, zero with a graph if there is none. Nothing here waits for the device.
    """
    count = keep.sum()
    order = (~keep).to(torch.uint8).argsort(stable=True)  # kept exams come first
    emb, variance, year = emb[order], log_var[order].exp(), year[order]
    place = torch.arange(len(year), device=year.device)
    counts = place < count
    second = torch.where(place + 1 < count, place + 1, 0)

    years_apart = (year.unsqueeze(1) - year).abs()
    years_to_second = years_apart.gather(1, second.unsqueeze(1))
    rank = (years_apart - years_to_second).abs()
    rank = rank.masked_fill(rank == 0, SAME)
    rank = rank + ANCHOR * torch.eye(len(year), dtype=rank.dtype, device=rank.device)
    third = rank.masked_fill(~counts, EXCLUDED).argmin(dim=1, keepdim=True)
    sign = (years_to_second - years_apart.gather(1, third)).sign().squeeze(1)

    def apart(other: Tensor) -> Tensor:
        return distance(emb, variance, emb[other], variance[other])

    hinge = (apart(third.squeeze(1)) - apart(second)) * sign + margin
    violates = counts & (sign != 0) & (hinge > 0)
    return torch.where(violates, hinge, 0.0).sum() / violates.sum().clamp(min=1)


class OABreaCRLoss:
    """Cross-entropy and mean-variance of four heads, divergence and triplets of the embedding, and the registration.

    Terms of `medtrain.protocols.loss`: `<head>_bce`, `<head>_mean_variance` and `final_divergence` are sums over exams
    with their weights, so they are the same on one process and on many. `registration` is the model's mean over the
    batch, which is equivalent to such a sum. `final_triplets` compares the exams of one batch with each other: **it
    depends on how exams are batched**, so on the batch size and the number of processes.

    compat: "reference" has the published code's targets and follow-up (see `class_targets`, `last_known_class`).
    class_weights: of the six classes, in the mean-variance terms.
    """

    def __init__(
        self,
        *,
        compat: Compat = "fixed",
        use_poe: bool = True,
        distance: str = "JDistance",
        alpha: float = 1e-5,
        beta: float = 1e-4,
        margin: float = 2.0,
        bce_weight: float = 2.0,
        mean_weight: float = 0.2,
        variance_weight: float = 0.05,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.compat, self.use_poe = compat, use_poe
        self.distance, self.alpha, self.beta, self.margin = DISTANCES[distance], alpha, beta, margin
        self.bce_weight, self.mean_weight, self.variance_weight = bce_weight, mean_weight, variance_weight
        self.class_weights = class_weights

    def __call__(self, outputs: dict[str, Tensor], batch: dict[str, Any]) -> dict[str, Any]:
        """The terms by name, each (sum, weight) or a mean; nothing in `batch` is changed."""
        weights = self.weights(batch)
        terms: dict[str, Any] = {"registration": outputs["loss"]}
        for head, head_weight in OABreaCR.head_weights.items():
            labels = self.labels(batch, head)
            logits = _single(outputs[head])
            bce = class_bce(logits, *class_targets(labels, self.compat))
            spread = mean_variance(
                logits, labels.year, self.row_weights(labels), self.mean_weight, self.variance_weight
            )
            terms[f"{head}_bce"] = (head_weight * self.bce_weight * bce, weights[f"{head}_bce"])
            terms[f"{head}_mean_variance"] = (head_weight * spread, weights[f"{head}_mean_variance"])
        if self.use_poe:
            emb, log_var = _single(outputs["emb_final"]), _single(outputs["log_var_final"])
            labels = self.labels(batch, "final")
            triplets = ordinal_triplets(emb, log_var, labels.year, labels.complete, self.distance, self.margin)
            terms["final_divergence"] = (self.alpha * divergence(emb, log_var), weights["final_divergence"])
            terms["final_triplets"] = self.beta * triplets
        return terms

    def weights(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """The divisor of each term, from the batch alone; for means the number of exams."""
        exams = torch.ones_like(batch["years_to_cancer"], dtype=torch.float32).sum()
        weights = {"registration": exams}
        for head in OABreaCR.head_weights:
            labels = self.labels(batch, head)
            weights[f"{head}_bce"] = class_targets(labels, self.compat)[1].sum()
            weights[f"{head}_mean_variance"] = self.row_weights(labels).sum()
        if self.use_poe:
            weights |= {"final_divergence": exams, "final_triplets": exams}
        return weights

    def labels(self, batch: dict[str, Any], head: str) -> ExamLabels:
        """The labels of a head: those of the current exam, or of the prior one."""
        years_to_cancer, years_to_followup = (batch[key] for key in HEAD_LABELS[head])
        return exam_labels(years_to_cancer, last_known_class(years_to_followup, self.compat))

    def row_weights(self, labels: ExamLabels) -> Tensor:
        """The weight of each exam in the mean-variance terms, (B,) float32; zero if its class is unknown."""
        rows = labels.complete.float()
        if self.class_weights is None:
            return rows
        return rows * torch.stack([weight * (labels.year == c) for c, weight in enumerate(self.class_weights)]).sum(
            dim=0
        )


def _mean_over_samples(rows: Tensor) -> Tensor:
    """(.., B) -> (B,)."""
    return rows.reshape(-1, rows.shape[-1]).mean(dim=0)


def _single(x: Tensor) -> Tensor:
    """The outputs in at least single precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
