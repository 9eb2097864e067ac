"""Gradient norms and learning rates of every n-th optimizer step, without waiting for the device."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from medtrain import Run

TOTAL = "gradients/norm"


@dataclass
class Sampled:
    """The values of one step, by name."""

    step: int
    values: dict[str, float]


class StepSampler:
    """Reads the gradients directly before the optimizer uses them (summed over batches, unscaled and clipped).

    It samples the first step of an epoch and every `interval`-th step. Norms stay on the device until `take`. failed:
    called once with the exception of a failure; nothing is sampled after that.
    """

    def __init__(self, run: Run, interval: int, failed: Callable[[Exception], None]) -> None:
        self.run, self.interval, self.failed = run, interval, failed
        self.optimizer = run.optimizer
        self.parts = {name: list(part.parameters()) for name, part in top_level(run.model)}
        self.norms: list[float] = []  # of the present epoch, from the steps taken so far
        self.owed = True
        self._seen: list[tuple[int, torch.Tensor, list[float]]] = []
        # With several optimizers, all gradients are there when the first one steps.
        first = next(iter(getattr(run.optimizer, "optimizers", {"": run.optimizer}).values()))
        self._handle = first.register_step_pre_hook(self._before_step)

    def begin_epoch(self) -> None:
        """Samples the next step, and averages from here."""
        self.owed = True
        self.norms = []

    def mean_norm(self) -> dict[str, float]:
        """`train/grad_norm`: the mean over the epoch's sampled steps."""
        return {"train/grad_norm": sum(self.norms) / len(self.norms)} if self.norms else {}

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        step = self.run.step + 1
        if step % self.interval and not self.owed:
            return
        try:
            self._look(step, getattr(optimizer, "grad_scale", None))
        except Exception as error:
            self.close()
            self.failed(error)

    def _look(self, step: int, scale: torch.Tensor | None) -> None:
        self.owed = False
        norms = []
        for parameters in self.parts.values():
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            norms.append(nn.utils.get_total_norm(gradients).float().to(self.run.device))
        found = torch.stack(norms)
        # Fused optimizers get scaled gradients and unscale them.
        found = found if scale is None else found / scale.to(found.device)
        assert self.optimizer is not None
        self._seen.append((step, found, [float(group["lr"]) for group in self.optimizer.param_groups]))

    def take(self) -> list[Sampled]:
        """The samples since the last call, in one transfer from the device."""
        if not self._seen:
            return []
        seen, self._seen = self._seen, []
        rows = torch.stack([norms for _, norms, _ in seen]).tolist()
        sampled = [Sampled(step, self._named(row, rates)) for (step, _, rates), row in zip(seen, rows, strict=True)]
        self.norms += [sample.values[TOTAL] for sample in sampled if TOTAL in sample.values]
        return sampled

    def _named(self, norms: list[float], rates: list[float]) -> dict[str, float]:
        assert self.optimizer is not None
        values = {TOTAL: math.hypot(*norms)}
        values |= {f"{TOTAL}/{name}": norm for name, norm in zip(self.parts, norms, strict=True)}
        values |= dict(zip(rate_names(self.optimizer.param_groups), rates, strict=True))
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def close(self) -> None:
        self._handle.remove()


def top_level(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The trainable modules of the first level with more than one module; else the model itself."""
    children = [(name, child) for name, child in model.named_children() if is_trained(child)]
    own = any(parameter.requires_grad for parameter in model.parameters(recurse=False))
    if len(children) == 1 and not own:
        yield from top_level(children[0][1])
        return
    if own or not children:
        yield "own", Own(model) if children else model
    yield from children


class Own(nn.Module):
    """A module's own parameters, without those of its children."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in model.named_parameters(recurse=False):
            self.register_parameter(name, parameter)


def is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def rate_names(groups: list[dict[str, Any]]) -> list[str]:
    """`learning_rate/<group>` for each parameter group, by its name or number."""
    names: list[str] = []
    for number, group in enumerate(groups):
        name = re.sub(r"[^\w.-]+", "_", str(group.get("name", ""))).strip("_.")
        name = f"learning_rate/{name or f'group_{number}'}"
        names.append(f"{name}_{number}" if name in names else name)
    return names
