"""The one object every lifecycle hook receives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from medtrain.runtime.distributed import World
from medtrain.runtime.precision import autocast

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import nn

    from medtrain.config.sections import RunConfig, Stage
    from medtrain.protocols.dataset import Data
    from medtrain.protocols.metric import Evaluation
    from medtrain.rundir.directory import SplitFolder


@dataclass
class Run:
    """A run as it stands.

    epoch: the epoch under way, from 0. step: optimizer steps done. metrics: the record of the last finished epoch,
    flat (`train/loss`, `validation/c_index`, `learning_rate`, ...). maps: the split's folder in the run directory.
    progress: where the present epoch stands; its tensors live on the device (reading them waits for it). After the
    epoch `progress["timing"]` tells seconds and samples per second.
    network: in `on_evaluate_end`, what was evaluated: `network(batch) -> dict`, of the averaged weights if there are.
    monitor: the name of the value that picks the best model; empty outside of training.
    modes: value name -> whether larger ("max") or smaller ("min") is better, known before `on_run_start`.
    world: this process among those of the run (`rank`, `size`, `gather`, `sum`, `any`, `broadcast`, `barrier`).
    amp: the type of autocast; None: there is none.
    stage, stage_settings: number and table of the stage of `[[stages]]` under way; without stages 0 and None.
    """

    config: RunConfig
    model: nn.Module
    device: torch.device
    maps: SplitFolder | None = None
    data: Data | None = None
    optimizer: torch.optim.Optimizer | None = None
    schedule: Any = None
    loss: Any = None
    split: int = 0
    epoch: int = 0
    step: int = 0
    num_epochs: int = 0
    steps_per_epoch: int = 0
    is_main_process: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    modes: dict[str, Literal["max", "min"]] = field(default_factory=dict)
    monitor: str = ""
    stage: int = 0
    stage_settings: Stage | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    checkpoint: Path | None = None
    exception: BaseException | None = None
    network: nn.Module | None = None
    stop_requested: str = ""
    rebuild_requested: bool = False
    world: World = field(default_factory=World)
    amp: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which the model computes as `computational.amp` says: `with run.autocast(): ...`."""
        return autocast(self.device, self.amp)

    def request_stop(self, reason: str = "requested") -> None:
        """End the run after this epoch, as if it were complete. The first reason given is the one that is reported."""
        self.stop_requested = self.stop_requested or reason

    def rebuild_data(self) -> None:
        """Have `build_data` answer again: at once when asked in `on_epoch_start`, else before the next epoch."""
        self.rebuild_requested = True
