"""Several optimizers in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from medtrain.errors import ConfigError


class Optimizers:
    """Several optimizers by name, each driven by the loss's terms of its name (`name`, or `name/part`).

    A step takes the gradients of all of them at the same weights, then steps all. It looks like one optimizer to
    schedules, checkpoints and hooks: `param_groups` are everybody's, those of `optimizers["generator"]` are called
    `generator`, or `generator.<group>` when it has several.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        self.parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            for name, optimizer in self.optimizers.items()
        }
        owners: dict[int, str] = {}
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                if (other := owners.setdefault(id(parameter), name)) != name:
                    raise ConfigError(f"build_optimizer: {other!r} and {name!r} share a parameter; each needs its own")
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                several = len(optimizer.param_groups) > 1
                group["name"] = f"{name}.{group.get('name', 'group')}" if several else name

    def __getitem__(self, name: str) -> torch.optim.Optimizer:
        return self.optimizers[name]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]

    def backward(self, totals: Mapping[str, torch.Tensor]) -> None:
        """Add to every optimizer's parameters the gradient of its own total; the others' are left alone."""
        pending = [name for name in self.optimizers if name in totals]
        for name in pending:
            parameters = self.parameters[name]
            gradients = torch.autograd.grad(
                totals[name], parameters, retain_graph=name != pending[-1], allow_unused=True
            )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def owner(self, term: str) -> str:
        """The optimizer that a term of the loss drives; raises ConfigError when there is none."""
        name = term.partition("/")[0]
        if name not in self.optimizers:
            raise ConfigError(
                f"the loss's term {term!r} drives no optimizer; terms are called as the optimizers are "
                f"({', '.join(self.optimizers)}), or NAME/part"
            )
        return name

    def step(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state[name])
