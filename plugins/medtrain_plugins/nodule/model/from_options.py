"""Builds the network and the loss from the options."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from medtrain import seed_model
from medtrain.errors import ConfigError
from torch import nn

from medtrain_plugins.nodule.model.build import build_detector
from medtrain_plugins.nodule.model.detector_loss import MapLoss, NoduleLoss
from medtrain_plugins.nodule.model.heads import DetectorModel
from medtrain_plugins.nodule.model.mining import HardNegatives
from medtrain_plugins.nodule.options import LossOptions, PivotOptions

if TYPE_CHECKING:
    from medtrain import RunConfig


def build_model(options: PivotOptions) -> DetectorModel:
    """The detector, freshly initialised."""
    chosen = options.model
    detector = build_detector(
        chosen.type,
        base_filters=chosen.base_filters,
        depth=chosen.depth,
        norm=chosen.norm,
        activation=chosen.activation,
        dropout=chosen.dropout,
        deep_supervision=chosen.deep_supervision,
        gradient_checkpointing=chosen.gradient_checkpointing,
        output_stride=chosen.output_stride,
        tasks=chosen.heads,
        diameter_channels=chosen.diameter_channels,
        options=chosen.options,
    )
    return DetectorModel(detector, learned_weights=options.loss.weighting == "learned")


def build_loss(options: PivotOptions, model: nn.Module) -> NoduleLoss:
    """The loss, with the terms of the requested heads that the network has."""
    chosen = options.loss
    there = getattr(model, "tasks", ("heatmap",))
    tasks = [task for task in options.model.heads if task in there]
    mining = chosen.hard_negative_mining
    return NoduleLoss(
        tasks,
        heatmap=map_loss(chosen, chosen.heatmap, mining.enabled),
        segmentation=map_loss(chosen, chosen.segmentation, False),
        beta=chosen.beta,
        triage_pos_weight=chosen.triage_pos_weight,
        triage_neg_weight=chosen.triage_neg_weight,
        weights={task: weight for task, weight in chosen.weights.items() if task in tasks},
        weighting=chosen.weighting,
        schedule={task: points for task, points in chosen.schedule.items() if task in tasks},
        deep_levels=int(getattr(model, "deep_levels", 0)),
    )


def map_loss(options: LossOptions, kind: str, mined: bool) -> MapLoss:
    """The loss of the heatmap or of the segmentation."""
    mining = options.hard_negative_mining
    try:
        hard = HardNegatives(mining.neg_pos_ratio, mining.hardest_fraction, mining.min_negatives, mining.threshold)
    except ValueError as error:
        raise ConfigError(f"plugins.pivot.loss.hard_negative_mining: {error}") from None
    return MapLoss(
        kind,  # type: ignore[arg-type]
        alpha=options.alpha,
        gamma=options.gamma,
        penalty_alpha=options.penalty_alpha,
        penalty_beta=options.penalty_beta,
        pos_weight=options.pos_weight,
        smooth=options.smooth,
        squared=options.squared_pred,
        mining=hard if mined else None,
    )


def untrained_model(config: RunConfig, options: PivotOptions, device: torch.device) -> DetectorModel:
    """The network as it is at the start of a run with this seed."""
    seed_model(config.run.seed)
    return build_model(options).to(device)
