"""Optimizers by name, their parameter groups, frozen parameters, and several optimizers in one step."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import torch
from medtrain.config import OptimizationSection, RunConfig
from medtrain.errors import ConfigError, nearest
from torch import nn

logger = logging.getLogger(__name__)


# Settings with keys of their own, which `optimization.options` must not set a second time.
OWN_KEYS = {"lr": "optimization.learning_rate", "weight_decay": "optimization.weight_decay"}


UNUSABLE = {
    "LBFGS": "it evaluates the loss several times per step, which the training loop does not",
    "SparseAdam": "it takes sparse gradients only",
}


def build_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of `optimization.optimizer` over the trainable parameters, in the groups of the configuration.

    Raises ConfigError for names that torch.optim does not have, and for options that the class does not take.
    """
    settings = config.optimization
    cls: Any = optimizer_class(settings.optimizer)
    known = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr", "weight_decay")]
    for name in settings.options:
        if name in OWN_KEYS:
            raise ConfigError(f"optimization.options.{name}: set {OWN_KEYS[name]} instead")
        if name not in known:
            raise ConfigError(
                f"optimization.options.{name}: {cls.__name__} has no such option{nearest(name, known)}; "
                f"known: {', '.join(known)}"
            )
    groups = parameter_groups(settings, model)
    if "weight_decay" not in inspect.signature(cls).parameters:
        decays = [group.pop("weight_decay") for group in groups]
        if any(decays):
            logger.warning("%s has no weight decay: optimization.weight_decay is not used", cls.__name__)
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.options.items()}
    try:
        made: torch.optim.Optimizer = cls(groups, lr=settings.learning_rate, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimization: {cls.__name__} cannot be made with these options: {error}") from None
    return made


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of torch.optim with this name, upper or lower case; raises ConfigError."""
    found = {
        cls.__name__.lower(): cls
        for cls in vars(torch.optim).values()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
    }
    usable = [cls.__name__ for cls in found.values() if cls.__name__ not in UNUSABLE]
    cls = found.get(name.lower())
    if cls is None:
        raise ConfigError(
            f"optimization.optimizer: torch.optim has no {name!r}{nearest(name, usable)}; known: {', '.join(usable)}"
        )
    if reason := UNUSABLE.get(cls.__name__):
        raise ConfigError(f"optimization.optimizer: {cls.__name__} cannot be used: {reason}")
    return cls


def parameter_groups(settings: OptimizationSection, model: nn.Module) -> list[dict[str, Any]]:
    """Optimizer groups of the trainable parameters, the unmatched ones last. Raises on a pattern without a match.

    With `decay_norm_and_bias` off, what is exempt from weight decay is a group of its own, named `<group> (no decay)`.
    """
    members: list[list[nn.Parameter]] = [[] for _ in settings.groups]
    rest: list[nn.Parameter] = []
    matched = [False] * len(settings.groups)
    for name, parameter in model.named_parameters():
        hits = [i for i, group in enumerate(settings.groups) if fnmatchcase(name, group.pattern)]
        for hit in hits:
            matched[hit] = True
        if parameter.requires_grad:
            (members[hits[0]] if hits else rest).append(parameter)
    for group, hit in zip(settings.groups, matched, strict=True):
        if not hit:
            raise ConfigError(f"optimization.groups: no parameter of the model is called {group.pattern!r}")
    groups = [
        {
            "params": parameters,
            "name": group.pattern,
            "lr": settings.learning_rate * group.lr_scale,
            "weight_decay": settings.weight_decay if group.weight_decay is None else group.weight_decay,
        }
        for group, parameters in zip(settings.groups, members, strict=True)
    ]
    groups.append({"params": rest, "name": "rest", "lr": settings.learning_rate, "weight_decay": settings.weight_decay})
    if not settings.decay_norm_and_bias:
        exempt = norms_and_biases(model)
        groups = [part for group in groups for part in _without_decay(group, exempt)]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("the model has no trainable parameter")
    return groups


def norms_and_biases(model: nn.Module) -> set[int]:
    """The ids of the parameters that normalisation layers own (`Norm` in the class's name) and of all biases."""
    return {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if "Norm" in type(module).__name__ or name.endswith("bias")
    }


def _without_decay(group: dict[str, Any], exempt: set[int]) -> tuple[dict[str, Any], dict[str, Any]]:
    decayed = [parameter for parameter in group["params"] if id(parameter) not in exempt]
    others = [parameter for parameter in group["params"] if id(parameter) in exempt]
    bare = {"params": others, "name": f"{group['name']} (no decay)", "weight_decay": 0.0}
    return {**group, "params": decayed}, {**group, **bare}


def freeze(model: nn.Module, patterns: Iterable[str]) -> None:
    """Take the parameters whose name matches out of training; raises ConfigError on a pattern without a match."""
    named = dict(model.named_parameters())
    for pattern in patterns:
        hits = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
        if not hits:
            raise ConfigError(f"optimization.freeze: no parameter of the model is called {pattern!r}")
        for parameter in hits:
            parameter.requires_grad_(False)
