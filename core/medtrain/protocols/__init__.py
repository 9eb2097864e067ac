"""What is passed around between the core, its plugins and a user's own code."""

from __future__ import annotations

from medtrain.protocols.comparison import Comparison, Difference, Score, Unit
from medtrain.protocols.dataset import (
    GROUPS,
    Augmentation,
    Data,
    Dataset,
    classes_of,
    evaluation_of,
    participants_of,
    sample_ids_of,
)
from medtrain.protocols.loss import Term, Terms, as_terms
from medtrain.protocols.metric import (
    NOT_A_NUMBER,
    Array,
    BatchMetric,
    Evaluation,
    Metric,
    Rows,
    Undefined,
    compute_all,
)
from medtrain.protocols.model import (
    SupervisedModel,
    TensorLoss,
    TensorModel,
    evaluation_mode,
    load_state,
    move_batch,
    stripped,
)
from medtrain.protocols.ranking import RankedValue, Ranking
from medtrain.protocols.report import Section
from medtrain.protocols.schedule import Plan, Schedule
from medtrain.protocols.weights import Check, State, Weights

__all__ = [
    "GROUPS", "NOT_A_NUMBER", "Array", "Augmentation", "BatchMetric", "Check", "Comparison", "Data", "Dataset",
    "Difference", "Evaluation", "Metric", "Plan", "RankedValue", "Ranking", "Rows", "Schedule", "Score", "Section",
    "State", "SupervisedModel", "TensorLoss", "TensorModel", "Term", "Terms", "Undefined", "Unit", "Weights",
    "as_terms", "classes_of", "compute_all", "evaluation_mode", "evaluation_of", "load_state", "move_batch",
    "participants_of", "sample_ids_of", "stripped",
]  # fmt: skip
