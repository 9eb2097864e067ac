"""`ComputationalConfig`: on what, and how exactly, one training of a Trainer is computed."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from pydantic import Field

from medtrain.config.sections import RunConfig, SectionModel
from medtrain.rundir.environment import has_gpu


class ComputationalConfig(SectionModel):
    """The computational side of one training; what is None stays as the Trainer's configuration has it."""

    gpu: bool | int | str | None = Field(
        None, description="True: a GPU, the CPU with a warning where there is none; False: the CPU; 1, 'cuda:1', 'mps'"
    )
    amp: bool | Literal["auto", "no", "bf16", "fp16"] | None = Field(None, description="True: as 'auto'")
    memory_format: Literal["contiguous", "channels_last"] | None = None
    seed: int | None = Field(None, ge=0)
    deterministic: bool | None = None
    compile: bool | None = None

    def apply(self, config: RunConfig) -> RunConfig:
        """The configuration with these values in the sections `computational` and `run`."""
        changes: dict[str, Any] = {
            "device": self._device(),
            "amp": ("auto" if self.amp else "no") if isinstance(self.amp, bool) else self.amp,
            "memory_format": self.memory_format,
            "deterministic": self.deterministic,
            "compile": self.compile,
        }
        kept = {name: value for name, value in changes.items() if value is not None}
        section = type(config.computational).model_validate(config.computational.model_dump() | kept)
        run = config.run if self.seed is None else config.run.model_copy(update={"seed": self.seed})
        return config.model_copy(update={"computational": section, "run": run})

    def _device(self) -> str | None:
        if self.gpu is None or self.gpu is False:
            return None if self.gpu is None else "cpu"
        if self.gpu is True:
            if not has_gpu():
                # The default filter shows it once.
                warnings.warn("gpu=True, but torch sees no GPU: training on the CPU", UserWarning, stacklevel=4)
            return "auto"
        return f"cuda:{self.gpu}" if isinstance(self.gpu, int) else self.gpu
