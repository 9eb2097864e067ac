"""Trackers: W&B and TensorBoard beside any run, under the metric names of the run's own history."""

from __future__ import annotations

from .tensor_board import TensorBoard
from .weights_biases import WandB

__all__ = ["TensorBoard", "WandB"]
