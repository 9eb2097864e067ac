"""A plugin that imports no torch: the command line answers for it at once."""

from __future__ import annotations

from medtrain import hookimpl
from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """What the tests turn."""

    model_config = ConfigDict(extra="forbid")

    dropout: float = Field(0.0, ge=0, description="share of what is dropped")
    sizes: list[int] = Field([1, 2], description="some numbers")


@hookimpl
def plugin_options() -> type[BaseModel]:
    """The options."""
    return Options


@hookimpl
def build_scheduler() -> None:
    """Leaves the schedule to the core."""
