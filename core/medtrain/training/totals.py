"""Sums and weights of the loss's terms over an epoch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from medtrain.protocols.loss import Terms
from medtrain.runtime.distributed import World

MOST_PENDING = 50  # losses that wait to be added: each is one more tensor on the device


@dataclass
class Totals:
    """Sums and weights of the loss's terms over (a part of) an epoch, on the device, in float64.

    grad_norm: sum of the gradient norms before clipping. norms: how many were finite, where some may not be.
    rates: learning rates of the last step, by group. skipped: steps left out as not finite. pending: losses that are
    still to be added, and their weights: two operations on the device at each step would be many.
    """

    sums: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    grad_norm: torch.Tensor | None = None
    norms: torch.Tensor | None = None
    steps: int = 0
    rates: list[float] = field(default_factory=list)
    skipped: int = 0
    pending: list[torch.Tensor] = field(default_factory=list)
    pending_weights: list[int] = field(default_factory=list)

    @property
    def terms(self) -> dict[str, list[torch.Tensor]]:
        """Sum and weight by term; waits for the device when losses are pending."""
        if self.pending:
            self._add_pending()
        return self.sums

    def add(self, terms: Terms) -> None:
        if self.pending:
            self._add_pending()  # sums are made in the order of the steps
        for name, term in terms.items():
            sums = self._of(name, term.sum.device)
            sums[0].add_(term.sum.detach())
            sums[1].add_(term.weight)

    def add_mean(self, mean: torch.Tensor, samples: int) -> None:
        """A loss that is one scalar, the mean over `samples`."""
        self.pending.append(mean.detach())
        self.pending_weights.append(samples)
        if len(self.pending) >= MOST_PENDING:
            self._add_pending()

    def _add_pending(self) -> None:
        losses, weights = self.pending, self.pending_weights
        total, weight = self._of("loss", losses[0].device)
        if losses[0].dtype == torch.float64 or total.dtype != torch.float64:
            for loss, samples in zip(losses, weights, strict=True):
                total.add_(loss, alpha=samples)
        else:
            # To the bit what the device would come to: times a number of samples, a float32 is exact in float64.
            number = total.item()
            for value, samples in zip(torch.stack(losses).tolist(), weights, strict=True):
                number += value * samples
            total.fill_(number)
        weight.add_(sum(weights))
        self.pending, self.pending_weights = [], []

    def _of(self, name: str, device: torch.device) -> list[torch.Tensor]:
        if name not in self.sums:
            exact = torch.float32 if device.type == "mps" else torch.float64  # all that Apple's GPUs have
            zero = torch.zeros((), dtype=exact, device=device)
            self.sums[name] = [zero, zero.clone()]
        return self.sums[name]

    def add_all(self, other: Totals) -> None:
        """The sums of a single step."""
        if self.pending:
            self._add_pending()
        for name, (total, weight) in other.terms.items():
            sums = self._of(name, total.device)
            sums[0].add_(total)
            sums[1].add_(weight)

    def add_norm(self, norm: torch.Tensor, scaled: bool) -> None:
        """The gradient norm of a step. scaled: a gradient scaler leaves out steps whose norm is not finite."""
        if scaled:
            finite = norm.isfinite()
            norm = torch.where(finite, norm, 0.0)
            self.norms = finite.long() if self.norms is None else self.norms.add_(finite)
        if self.grad_norm is None:
            self.grad_norm = norm.clone() if norm.device.type == "mps" else norm.double()
        else:
            self.grad_norm.add_(norm)

    def is_finite(self) -> bool:
        """Whether every sum is; waits for the device."""
        return all(math.isfinite(total.item()) for total, _ in self.terms.values())

    def means(self, world: World) -> dict[str, float]:
        """`loss` and, when there are several, each term; over all processes."""
        terms = self.terms
        sums = [number for pair in terms.values() for number in pair]
        if not sums:
            return {"loss": math.nan}
        numbers = world.sum(torch.stack(sums)).tolist()
        values = {
            name: numbers[2 * i] / numbers[2 * i + 1] if numbers[2 * i + 1] else 0.0 for i, name in enumerate(terms)
        }
        means = {"loss": sum(values.values())}
        if len(values) > 1:
            means |= {f"loss_{name}": value for name, value in values.items()}
        steps = self.steps - self.skipped if self.norms is None else int(self.norms)
        if self.grad_norm is not None and steps:
            means["grad_norm"] = float(self.grad_norm) / steps
        return means

    def state_dict(self) -> dict[str, Any]:
        names = ("terms", "grad_norm", "norms", "steps", "rates", "skipped")
        return {name: getattr(self, name) for name in names}

    def shared(self, world: World) -> Totals:
        """The totals of all processes together."""
        terms = {name: [world.sum(number.clone()) for number in pair] for name, pair in self.terms.items()}
        return replace(self, sums=terms, pending=[], pending_weights=[])

    @classmethod
    def from_state(cls, state: dict[str, Any], world: World) -> Totals:
        """What `shared` gave: the main process takes all of it, the others go on from zero."""
        keep = 1.0 if world.is_main else 0.0
        terms = {name: [n.to(world.device) * keep for n in pair] for name, pair in state["terms"].items()}
        facts = {name: value for name, value in state.items() if name != "terms"}
        for name in ("grad_norm", "norms"):
            if (value := facts.get(name)) is not None:
                facts[name] = value.to(world.device)
        return cls(terms, **facts)
