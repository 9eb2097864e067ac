"""The configuration of a run: typed sections, and how layers of TOML and flags become one."""

from __future__ import annotations

from medtrain.config.computational import ComputationalConfig
from medtrain.config.layers import Layers, locate, parse_value, read_toml
from medtrain.config.resolution import configure
from medtrain.config.sections import (
    COURSES,
    CheckpointSection,
    ComputationalSection,
    DataSection,
    EarlyStoppingSection,
    OptimizationConfig,
    OptimizationSection,
    ParameterGroup,
    RunConfig,
    RunSection,
    SchedulerSection,
    SectionModel,
    Stage,
    TransferSection,
    ValidationSection,
    check_stages,
)

__all__ = [
    "COURSES", "CheckpointSection", "ComputationalConfig", "ComputationalSection", "DataSection",
    "EarlyStoppingSection", "Layers", "OptimizationConfig", "OptimizationSection", "ParameterGroup", "RunConfig",
    "RunSection", "SchedulerSection", "SectionModel", "Stage", "TransferSection", "ValidationSection",
    "check_stages", "configure", "locate", "parse_value", "read_toml",
]  # fmt: skip
