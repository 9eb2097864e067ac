"""The loss of a detector: one term per head, with fixed, scheduled or learned weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from medtrain.errors import ConfigError, DataError, nearest
from torch import Tensor
from torch.nn import functional

from medtrain_plugins.nodule.model.heads import TASKS, check_tasks
from medtrain_plugins.nodule.model.losses import bce, dice, focal, penalty_reduced_focal, smooth_l1, weighted_bce
from medtrain_plugins.nodule.model.mining import HardNegatives

Pair = tuple[Tensor, Tensor]
Weighting = Literal["fixed", "learned", "scheduled"]
TARGETS = {"segmentation": "mask"}  # batch keys of targets whose name differs from their head's
DEEP_FACTOR = 0.5  # factor of each coarser level of deep supervision


@dataclass(frozen=True)
class MapLoss:
    """A loss of logits (B, 1, d, h, w) against targets in [0, 1], NaN where unknown, as (sum, weight).

    penalty_reduced_focal: divided by the number of centres (targets of exactly 1) in all processes, at least by 1.
    focal, bce: divided by the number of entries used. dice: of each sample, divided by the number of samples with a
    known entry. alpha, gamma: of focal. penalty_alpha, penalty_beta: of penalty_reduced_focal. pos_weight: of bce.
    smooth, squared: of dice. mining: which entries are used; not for dice, which is a ratio of whole samples.
    """

    kind: Literal["penalty_reduced_focal", "focal", "bce", "dice"] = "penalty_reduced_focal"
    alpha: float = 0.25
    gamma: float = 2.0
    penalty_alpha: float = 2.0
    penalty_beta: float = 4.0
    pos_weight: float = 1.0
    smooth: float = 1.0
    squared: bool = False
    mining: HardNegatives | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("penalty_reduced_focal", "focal", "bce", "dice"):
            raise ConfigError(f"there is no loss {self.kind!r}; there are penalty_reduced_focal, focal, bce, dice")
        if self.mining is not None and self.kind == "dice":
            raise ConfigError("hard negatives are chosen by the loss of each voxel, which dice does not have")

    def __call__(self, logits: Tensor, target: Tensor) -> Pair:
        known = target.isfinite()
        values = torch.where(known, target, 0.0)
        if self.kind == "dice":
            # Unknown voxels are outside both masks.
            losses = dice(torch.where(known, logits, -100.0), values, self.smooth, self.squared)
            return torch.where(known.flatten(1).any(dim=1), losses, 0.0).sum(), self.weight(target)
        losses = self._entries(logits, values)
        counted = known if self.mining is None else self.mining.select(losses, target)
        return torch.where(counted, losses, 0.0).sum(), self.weight(target)

    def weight(self, target: Tensor) -> Tensor:
        """The divisor of the sum, float32."""
        if self.kind == "dice":
            count = target.isfinite().flatten(1).any(dim=1).sum()
        elif self.kind == "penalty_reduced_focal":
            count = (target == 1).sum()
        elif self.mining is None:
            count = target.isfinite().sum()
        else:
            count = self.mining.counts(target).selected.sum()
        return count.float()

    def _entries(self, logits: Tensor, target: Tensor) -> Tensor:
        match self.kind:
            case "focal":
                return focal(logits, target, self.alpha, self.gamma)
            case "bce":
                return bce(logits, target, self.pos_weight)
        return penalty_reduced_focal(logits, target, self.penalty_alpha, self.penalty_beta)


class NoduleLoss:
    """The loss of a `DetectorModel` under the core's contract: task -> (sum, weight).

    outputs: maps by task. batch: targets of the same names (`targets.make_targets`, stacked), `mask` (B, 1, D, H, W)
    for the segmentation. Offsets and diameters (smooth L1) and triage (weighted cross-entropy) are averaged over the
    voxels where their target is known, which is near labelled centres; without any, the sum is zero, with a graph.

    tasks: the trained heads; others cost nothing. weights: factor of each task, default 1. weighting: "fixed";
    "scheduled": `schedule` gives (epoch, factor) points by task, with linear interpolation between and constant values
    beyond them (call `set_epoch`); "learned": each term L becomes e^-s L + s, s its entry of `outputs["log_variance"]`
    (Kendall et al., CVPR 2018), on top of `weights`. deep_levels: heatmaps of deep supervision that the model returns
    in training; each counts half of the finer one. beta: of the smooth L1 losses.

    All terms, with mining too, are sums over voxels or samples with weights from the targets: they are the same on one
    process and on many, and with accumulation. Dice and mining work sample by sample.
    """

    def __init__(
        self,
        tasks: Sequence[str] = TASKS,
        *,
        heatmap: MapLoss | None = None,
        segmentation: MapLoss | None = None,
        beta: float = 1.0,
        triage_pos_weight: float = 1.0,
        triage_neg_weight: float = 1.0,
        weights: Mapping[str, float] | None = None,
        weighting: Weighting = "fixed",
        schedule: Mapping[str, Sequence[tuple[float, float]]] | None = None,
        deep_levels: int = 0,
    ) -> None:
        check_tasks(tasks)
        self.tasks = tuple(tasks)
        self.maps = {"heatmap": heatmap or MapLoss(), "segmentation": segmentation or MapLoss("dice")}
        self.beta = beta
        self.triage_weights = (triage_pos_weight, triage_neg_weight)
        self.factors = dict.fromkeys(self.tasks, 1.0) | self._of_tasks(weights or {}, "weights")
        self.schedule = {task: sorted(points) for task, points in self._of_tasks(schedule or {}, "schedule").items()}
        if (weighting == "scheduled") != bool(self.schedule):
            raise ConfigError("a schedule of task weights belongs to the weighting 'scheduled', which needs one")
        self.learned = weighting == "learned"
        self.deep_levels = deep_levels
        self.set_epoch(0)

    def set_epoch(self, epoch: float) -> None:
        """Sets the scheduled factors of an epoch, counted from 0."""
        for task, points in self.schedule.items():
            epochs, factors = zip(*points, strict=True)
            self.factors[task] = float(np.interp(epoch, epochs, factors))

    def __call__(self, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> dict[str, Pair]:
        terms: dict[str, Pair] = {}
        for task in self.tasks:
            if task not in outputs:
                raise ConfigError(
                    f"the loss has a term for {task!r}, but the network has no such head; there are "
                    f"{', '.join(name for name in TASKS if name in outputs)}"
                )
            total, weight = self._term(task, outputs[task], self._target(task, batch))
            terms[task] = (self._weighted(task, outputs, total, weight), weight)
        for level, heatmap in enumerate(outputs.get("deep_heatmaps", ()), start=1):
            total, weight = self.maps["heatmap"](heatmap, _coarser(self._target("heatmap", batch), level))
            factor = DEEP_FACTOR**level
            terms[f"heatmap_{level}"] = (factor * self._weighted("heatmap", outputs, total), weight)
        return terms

    def weights(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The weights of the terms in training, from the batch alone."""
        found = {}
        for task in self.tasks:
            target = self._target(task, batch)
            found[task] = self.maps[task].weight(target) if task in self.maps else target.isfinite().sum().float()
        for level in range(1, self.deep_levels + 1):
            found[f"heatmap_{level}"] = self.maps["heatmap"].weight(_coarser(self._target("heatmap", batch), level))
        return found

    def _term(self, task: str, output: Tensor, target: Tensor) -> Pair:
        if task in self.maps:
            return self.maps[task](output, target)
        known = target.isfinite()
        values = torch.where(known, target, 0.0)
        if task == "triage":
            losses = weighted_bce(output, values, *self.triage_weights)
        else:
            losses = smooth_l1(output, values, self.beta)
        return torch.where(known, losses, 0.0).sum(), known.sum().float()

    def _weighted(self, task: str, outputs: Mapping[str, Any], total: Tensor, weight: Tensor | None = None) -> Tensor:
        """The sum times its factor; with learned weighting also e^-s, and + s, which keeps e^-s from becoming 0."""
        total = self.factors[task] * total
        if not self.learned:
            return total
        if "log_variance" not in outputs:
            raise ConfigError(
                "learned task weights need a model with log_variance: DetectorModel(learned_weights=True)"
            )
        heads = [name for name in TASKS if name in outputs]
        s: Tensor = outputs["log_variance"].float()[heads.index(task)]
        return (-s).exp() * total + (0.0 if weight is None else s * weight)

    def _target(self, task: str, batch: Mapping[str, Any]) -> Tensor:
        key = TARGETS.get(task, task)
        if key not in batch:
            raise DataError(f"the samples have no {key!r}, which the head {task!r} learns from; leave this head out")
        target: Tensor = batch[key]
        return target if target.dtype == torch.float64 else target.float()

    def _of_tasks(self, values: Mapping[str, Any], what: str) -> dict[str, Any]:
        for task in values:
            if task not in self.tasks:
                raise ConfigError(f"{what}: no head {task!r} is trained{nearest(task, self.tasks)}")
        return dict(values)


def _coarser(heatmap: Tensor, level: int) -> Tensor:
    """A heatmap at 1 / 2^level of the size: the maximum of each block, so that centres stay exactly 1."""
    return functional.max_pool3d(heatmap, 2**level, ceil_mode=True)
