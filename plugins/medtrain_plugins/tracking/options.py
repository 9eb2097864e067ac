"""The keys of `tracking.wandb` and `tracking.tensorboard`."""

from __future__ import annotations

from typing import Literal

from medtrain.config import SectionModel
from pydantic import Field


class WandBOptions(SectionModel):
    """Weights & Biases."""

    id: str = Field("", pattern=r"^[\w.-]*$", description="run id, to go on with a run W&B knows; default: a new one")
    project: str = Field("", description="project; default: WANDB_PROJECT, else medtrain")
    entity: str = Field("", description="user or team; default: WANDB_ENTITY, else the account's own")
    tags: list[str] = Field([], description="tags of the run")
    name: str = Field("", description="name of the run; default: that of the run directory")
    notes: str = Field("", description="a longer description")
    group: str = Field("", description="what the splits of a run are grouped under; default: the run directory's name")
    mode: Literal["auto", "online", "offline"] = Field(
        "auto", description="auto: WANDB_MODE, else online when an API key is known, else offline"
    )
    timeout: float = Field(30.0, gt=0, description="seconds to wait for W&B, in the background and at the end")
    gradient_interval: int = Field(20, ge=0, description="steps between two looks at gradient norms; 0: none")


class TensorBoardOptions(SectionModel):
    """TensorBoard."""

    gradient_interval: int = Field(20, ge=0, description="steps between two looks at gradient norms; 0: none")
    samples: int = Field(4, ge=0, description="validation samples whose predictions are shown; 0: none")
