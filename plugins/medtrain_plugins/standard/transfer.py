"""Transfer: weights taken over by name, and parts that rest, for some epochs or for good."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from medtrain.config import RunConfig, TransferSection
from medtrain.errors import CheckpointError, ConfigError, first_lines
from medtrain.plugins import Plugins
from medtrain.protocols.model import stripped
from medtrain.runtime.distributed import World, replicate
from medtrain.weights import read_weights
from torch import nn

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


class Transfer:
    """The transfer of one run: loads, scales rates, freezes, and unfreezes when it is time."""

    def __init__(self, config: RunConfig) -> None:
        self.settings = config.transfer
        self.find_unused_parameters = config.computational.find_unused_parameters
        self.report: Report | None = None
        self.frozen = False
        self._resting: list[nn.Parameter] = []
        self._members: list[list[nn.Parameter]] = []
        if self.settings.checkpoint is None and self.settings.lr_scale != 1.0:
            raise ConfigError("transfer.lr_scale: nothing is transferred; name a transfer.checkpoint")
        if self.settings.freeze_epochs and not self.settings.freeze:
            raise ConfigError("transfer.freeze_epochs: nothing is frozen; name the parts in transfer.freeze")

    def load(self, config: RunConfig, plugins: Plugins, model: nn.Module) -> None:
        """Take over the weights of `transfer.checkpoint`; the model keeps its own where the file has none."""
        path = self.settings.checkpoint
        if path is None:
            return
        if not path.exists():
            raise ConfigError(f"transfer.checkpoint: there is no file or run {str(path)!r}")
        builders = [plugin.name for plugin in plugins.loaded if "build_model" in plugin.hooks]
        weights = read_weights(plugins, builders[-1] if builders else "", config.with_fresh_model(), [path])
        self.report = load(model, weights.state, self.settings, str(path))
        if self.report.mismatched:
            logger.warning("transfer: not loaded, of other shape:\n%s", first_lines(self.report.mismatched))

    def prepare(self, model: nn.Module, optimizer: Any) -> None:
        """Give what was transferred its own learning rate, and put what is frozen to rest."""
        if self.settings.lr_scale != 1.0:
            self._scale_rates(model, optimizer)
        if self.settings.freeze:
            self._freeze(model, optimizer)

    def _scale_rates(self, model: nn.Module, optimizer: Any) -> None:
        settings = self.settings
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for part in _optimizers(optimizer):
            for group in list(part.param_groups):
                scaled = [
                    parameter
                    for parameter in group["params"]
                    if _matches(names.get(id(parameter), ""), settings.include)
                    and not _matches(names.get(id(parameter), ""), settings.exclude)
                ]
                rest = [parameter for parameter in group["params"] if all(parameter is not other for other in scaled)]
                if not rest:
                    group["lr"] *= settings.lr_scale
                elif scaled:
                    group["params"] = rest
                    own = {**group, "params": scaled, "lr": group["lr"] * settings.lr_scale}
                    if "name" in group:
                        own["name"] = f"{group['name']} (transferred)"
                    part.add_param_group(own)

    def _freeze(self, model: nn.Module, optimizer: Any) -> None:
        named = dict(model.named_parameters())
        for pattern in self.settings.freeze:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ConfigError(f"transfer.freeze: no parameter of the model is called {pattern!r}")
        # What the plugin froze itself is its own business, now and when the rest is thawed.
        self._resting = [p for name, p in named.items() if p.requires_grad and _matches(name, self.settings.freeze)]
        self._members = [list(group["params"]) for group in optimizer.param_groups]
        resting = {id(parameter) for parameter in self._resting}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in resting]
        for parameter in self._resting:
            parameter.requires_grad_(False)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ConfigError("transfer.freeze: no trainable parameter is left")
        self.frozen = True
        _tell(optimizer)

    def is_due(self, epoch: int) -> bool:
        """Whether the frozen parts learn from this epoch on."""
        return self.frozen and 0 < self.settings.freeze_epochs <= epoch

    def unfreeze(self, engine: Any) -> None:
        """Let the frozen parts learn: back into their optimizer groups, and a new DDP that knows their gradients."""
        for parameter in self._resting:
            parameter.requires_grad_(True)
        # Groups by place: restoring a checkpoint makes new dictionaries of them.
        for group, members in zip(engine.optimizer.param_groups, self._members, strict=True):
            group["params"] = list(members)
        self.frozen = False
        _tell(engine.optimizer)
        world: World = engine.world
        if world.size > 1:
            inner = engine.model.module
            engine.model = None
            gc.collect()  # the old one's hooks on the gradients go with it
            engine.model = replicate(inner, world, self.find_unused_parameters)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    return list(optimizer.optimizers.values()) if hasattr(optimizer, "optimizers") else [optimizer]


def _tell(optimizer: Any) -> None:
    """Several optimizers in one keep lists of what they take gradients of."""
    if hasattr(optimizer, "optimizers"):
        for name, part in optimizer.optimizers.items():
            optimizer.parameters[name] = [p for group in part.param_groups for p in group["params"] if p.requires_grad]
