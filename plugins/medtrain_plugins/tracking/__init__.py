"""Trackers: W&B and TensorBoard beside any run, under the metric names of the run's own history."""

from __future__ import annotations

from medtrain_plugins.tracking.tensor_board import TensorBoard
from medtrain_plugins.tracking.weights_biases import WandB

__all__ = ["TensorBoard", "WandB"]
