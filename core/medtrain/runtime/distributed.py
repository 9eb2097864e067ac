"""Processes, devices and collectives: torch.distributed, started through accelerate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from medtrain.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place. A single process has rank 0 of 1 and never touches torch.distributed."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        if self.size == 1:
            return flag
        raised = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def broadcast(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]  # type: ignore[no-any-return]

    def gather(self, values: list[T]) -> list[T]:
        """The lists of all processes, one after the other."""
        if self.size == 1:
            return values
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through the block before the others (they find what it cached)."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        finally:
            if self.is_main:
                self.barrier()


def join(device: str = "auto") -> World:
    """Join the run's processes, if the environment says there are several, and choose the device."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if device == "mps":
        return World(device=_apple_gpu(several))
    _check_gpu(device, several)
    use_cuda = torch.cuda.is_available() and device != "cpu"
    if several:
        from accelerate import PartialState

        state = PartialState(cpu=not use_cuda)
        return World(state.process_index, state.num_processes, state.device)
    if not use_cuda:
        return World(device=torch.device("cpu"))
    number = torch.device(device).index if ":" in device else None
    if number is not None:
        torch.cuda.set_device(number)
    return World(device=torch.device("cuda", torch.cuda.current_device()))


def _check_gpu(device: str, several: bool) -> None:
    if not device.startswith("cuda"):
        return
    if not torch.cuda.is_available():
        raise ConfigError(f"computational.device: {device!r} was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    number = torch.device(device).index
    if number is not None and several:
        raise ConfigError(f"computational.device: {device!r} is one GPU, but there are several processes; use 'cuda'")
    if number is not None and number >= (count := torch.cuda.device_count()):
        raise ConfigError(f"computational.device: there is no {device!r}; torch sees {count} GPU(s), from cuda:0 on")


def _apple_gpu(several: bool) -> torch.device:
    if not torch.backends.mps.is_available():
        raise ConfigError("computational.device: 'mps' was asked for, but torch sees no Apple GPU; use 'auto' or 'cpu'")
    if several:
        raise ConfigError("computational.device: 'mps' is one GPU, but there are several processes; use 'cpu'")
    return torch.device("mps")


def replicate(model: nn.Module, world: World, find_unused_parameters: bool) -> nn.Module:
    """The model under DDP when there are several processes; gradients are averaged, buffers those of rank 0."""
    if world.size == 1:
        return model
    from accelerate import Accelerator, DistributedDataParallelKwargs

    handler = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
    accelerator = Accelerator(cpu=world.device.type == "cpu", kwargs_handlers=[handler])
    prepared: nn.Module = accelerator.prepare_model(model)
    return prepared
