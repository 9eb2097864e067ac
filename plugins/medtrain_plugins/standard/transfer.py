"""Transfer: weights taken over by name, and frozen parameters, for some epochs or for good."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from medtrain.config import RunConfig, TransferSection
from medtrain.errors import CheckpointError, ConfigError, first_lines
from medtrain.protocols import Weights, stripped
from torch import nn

from medtrain_plugins.standard.optimizers import freeze

logger = logging.getLogger(__name__)


@dataclass
class Report:
    """What became of a model's keys. mismatched: with both shapes; unused: keys of the file that nothing took."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} tensors loaded, {len(self.missing)} missing, {len(self.mismatched)} of other shape, "
            f"{len(self.unused)} unused"
        )


def load(model: nn.Module, state: Mapping[str, torch.Tensor], settings: TransferSection, where: str) -> Report:
    """Load the tensors whose name is included and whose shape fits; CheckpointError when there is none."""
    expected = model.state_dict()
    found = stripped(state, expected)
    report, taken = Report(unused=[key for key in found if key not in expected]), {}
    for key, tensor in expected.items():
        if not _matches(key, settings.include) or _matches(key, settings.exclude):
            report.unused += [key] if key in found else []
        elif key not in found:
            report.missing.append(key)
        elif found[key].shape != tensor.shape:
            report.mismatched.append(f"{key}: {tuple(found[key].shape)}, the model has {tuple(tensor.shape)}")
        else:
            report.loaded.append(key)
            taken[key] = found[key]
    if not taken:
        raise CheckpointError(
            f"transfer.checkpoint: {where}: nothing in it fits the model ({report}); it has\n"
            f"{first_lines(list(found))}\nthe model has\n{first_lines(list(expected))}"
        )
    model.load_state_dict(taken, strict=False)
    return report


def load_checkpoint(config: RunConfig, model: nn.Module, read_weights: Callable[[Path], Weights]) -> Report | None:
    """Take over the weights of `transfer.checkpoint`; the model keeps its own where the file has none."""
    settings = config.transfer
    path = settings.checkpoint
    if path is None and settings.lr_scale != 1.0:
        raise ConfigError("transfer.lr_scale: nothing is transferred; name a transfer.checkpoint")
    if path is None or config.fresh:
        return None
    if not path.exists():
        raise ConfigError(f"transfer.checkpoint: there is no file or run {str(path)!r}")
    report = load(model, read_weights(path).state, settings, str(path))
    if report.mismatched:
        logger.warning("transfer: not loaded, of other shape:\n%s", first_lines(report.mismatched))
    return report


def freeze_parts(config: RunConfig, model: nn.Module) -> list[nn.Parameter]:
    """Freeze what the configuration names; the parameters that `transfer.freeze` froze, which may train again."""
    settings = config.transfer
    if settings.freeze_epochs and not settings.freeze:
        raise ConfigError("transfer.freeze_epochs: nothing is frozen; name the parts in transfer.freeze")
    freeze(model, config.optimization.freeze)
    named = dict(model.named_parameters())
    for pattern in settings.freeze:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError(f"transfer.freeze: no parameter of the model is called {pattern!r}")
    # What the plugin froze itself is its own business, now and when the rest trains again.
    resting = [p for name, p in named.items() if p.requires_grad and _matches(name, settings.freeze)]
    for parameter in resting:
        parameter.requires_grad_(False)
    if settings.freeze and not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError("transfer.freeze: no trainable parameter is left")
    return resting


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
