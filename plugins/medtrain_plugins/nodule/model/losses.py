"""The losses of single tasks, entry by entry: focal, Dice, cross-entropies, smooth L1.

All of them take logits, compute in float32 at least (also inside autocast), and return one value per entry (Dice: per
sample); `reduce` makes one number of them. `detector_loss.NoduleLoss` combines them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Reduction = Literal["mean", "sum", "none"]
CLAMP = 1e-7  # probabilities are clamped to [EPSILON, 1 - EPSILON]


def reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    """The mean or the sum of all entries, or the entries."""
    match reduction:
        case "mean":
            return losses.mean()
        case "sum":
            return losses.sum()
    return losses


def focal(
    logits: Tensor,
    target: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "none",
    from_logits: bool = True,
) -> Tensor:
    """The binary focal loss (Lin et al., ICCV 2017): a_t (1 - p_t)^gamma times the cross-entropy.

    logits, target: of one shape, any; targets in [0, 1], also fractional. alpha: weight of the positive class, gamma:
    how much easy entries are down-weighted. from_logits: False takes probabilities, which are clamped to [1e-7, 1 -
    1e-7]. Raises ValueError for an alpha outside [0, 1], a negative gamma, or shapes that differ.
    """
    if not 0 <= alpha <= 1 or gamma < 0:
        raise ValueError(f"focal loss: alpha {alpha} must lie in [0, 1], gamma {gamma} must not be negative")
    logits, target = _pair(logits, target)
    probability, entropy = _probability_and_entropy(logits, target, from_logits)
    of_class = probability * target + (1 - probability) * (1 - target)
    balance = alpha * target + (1 - alpha) * (1 - target)
    return reduce(balance * (1 - of_class) ** gamma * entropy, reduction)


def penalty_reduced_focal(logits: Tensor, target: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """The focal loss of heatmaps (Law and Deng, ECCV 2018), by entry: near a centre, high values cost little.

    -(1 - p)^alpha ln p where the target is exactly 1, -(1 - Y)^beta p^alpha ln(1 - p) elsewhere. The caller sums the
    entries and divides by the number of targets that are 1 (at least by 1).
    """
    logits, target = _pair(logits, target)
    probability = logits.sigmoid()
    peak = (1 - probability) ** alpha * functional.softplus(-logits)
    elsewhere = (1 - target) ** beta * probability**alpha * functional.softplus(logits)
    return torch.where(target == 1, peak, elsewhere)


def dice(
    logits: Tensor, target: Tensor, smooth: float = 1.0, squared: bool = False, from_logits: bool = True
) -> Tensor:
    """One minus the soft Dice coefficient of each sample, its channels averaged: (B, C, *size) twice -> (B,).

    One channel goes through a sigmoid, several through a softmax. smooth: added to numerator and denominator, so that
    two empty masks agree. squared: squares of prediction and target in the denominator (Milletari et al., 3DV 2016).
    """
    logits, target = _pair(logits, target)
    probability = logits
    if from_logits:
        probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)
    probability, target = probability.flatten(2), target.flatten(2)
    both = (probability * target).sum(dim=2)
    power = 2 if squared else 1
    each = (probability**power).sum(dim=2) + (target**power).sum(dim=2)
    return 1 - ((2 * both + smooth) / (each + smooth)).mean(dim=1)


def bce(
    logits: Tensor,
    target: Tensor,
    pos_weight: float | Sequence[float] | None = None,
    reduction: Reduction = "none",
    from_logits: bool = True,
) -> Tensor:
    """Binary cross-entropy; targets in [0, 1]. pos_weight: factor of the positive part, one or one per channel (dim 1).

    from_logits: False takes probabilities, which are clamped to [1e-7, 1 - 1e-7].
    """
    return weighted_bce(logits, target, 1.0 if pos_weight is None else pos_weight, 1.0, reduction, from_logits)


def weighted_bce(
    logits: Tensor,
    target: Tensor,
    pos_weight: float | Sequence[float] = 1.0,
    neg_weight: float | Sequence[float] = 1.0,
    reduction: Reduction = "none",
    from_logits: bool = True,
) -> Tensor:
    """Cross-entropy with a factor for each part: w_pos y softplus(-z) + w_neg (1 - y) softplus(z), any y in [0, 1].

    Factors: a number, or one per channel (dim 1).
    """
    logits, target = _pair(logits, target)
    positive, negative = _factor(pos_weight, logits), _factor(neg_weight, logits)
    if from_logits:
        missed, alarmed = functional.softplus(-logits), functional.softplus(logits)
    else:
        probability = logits.clamp(CLAMP, 1 - CLAMP)
        missed, alarmed = -probability.log(), -torch.log1p(-probability)
    return reduce(positive * target * missed + negative * (1 - target) * alarmed, reduction)


def smooth_l1(prediction: Tensor, target: Tensor, beta: float = 1.0, reduction: Reduction = "none") -> Tensor:
    """Half the squared difference over beta below beta, the difference less beta / 2 from there on. beta > 0."""
    if beta <= 0:
        raise ValueError(f"smooth L1: beta {beta} must be positive")
    prediction, target = _pair(prediction, target)
    return reduce(functional.smooth_l1_loss(prediction, target, beta=beta, reduction="none"), reduction)


def _single(values: Tensor) -> Tensor:
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _pair(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} differ in shape")
    prediction = _single(prediction)
    return prediction, target.to(prediction.dtype)


def _probability_and_entropy(values: Tensor, target: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    if from_logits:
        entropy = functional.binary_cross_entropy_with_logits(values, target, reduction="none")
        return values.sigmoid(), entropy
    probability = values.clamp(CLAMP, 1 - CLAMP)
    return probability, -(target * probability.log() + (1 - target) * torch.log1p(-probability))


def _factor(factor: float | Sequence[float], like: Tensor) -> Tensor | float:
    if isinstance(factor, int | float):
        return float(factor)
    values = like.new_tensor(list(factor))
    return values.reshape(1, -1, *[1] * (like.dim() - 2)) if like.dim() > 1 else values
