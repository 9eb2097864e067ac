"""Several optimizers in one step, and which parameters are in the groups of an optimizer."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from medtrain.config.sections import TransferSection
from medtrain.errors import ConfigError
from medtrain.protocols.schedule import Schedules
from medtrain.run import Run
from medtrain.runtime.distributed import replicate
from medtrain.training.engine import Engine


class Optimizers:
    """Several optimizers by name, each driven by the loss's terms of its name (`name`, or `name/part`).

    A step takes the gradients of all of them at the same weights, then steps all. It looks like one optimizer to
    schedules, checkpoints and hooks: `param_groups` are everybody's, those of `optimizers["generator"]` are called
    `generator`, or `generator.<group>` when it has several.
    """

    def __init__(self, optimizers: Mapping[str, torch.optim.Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        self.parameters: dict[str, list[nn.Parameter]] = {}
        self.update_parameters()
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

    def update_parameters(self) -> None:
        """Take the gradients of what is in the groups now and trains."""
        self.parameters = {
            name: [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            for name, optimizer in self.optimizers.items()
        }

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


def optimizers_of(optimizer: Any) -> dict[str, Any]:
    """The optimizers of torch in an optimizer, by name; a single one has none."""
    return optimizer.optimizers if isinstance(optimizer, Optimizers) else {"": optimizer}


def scale_rates(settings: TransferSection, model: nn.Module, optimizer: Any) -> None:
    """Multiply the learning rate of what was transferred by `transfer.lr_scale`, in groups of its own where needed."""
    if settings.lr_scale == 1.0:
        return
    transferred = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if any(fnmatchcase(name, pattern) for pattern in settings.include)
        and not any(fnmatchcase(name, pattern) for pattern in settings.exclude)
    }
    for part in optimizers_of(optimizer).values():
        for group in list(part.param_groups):
            scaled = [parameter for parameter in group["params"] if id(parameter) in transferred]
            rest = [parameter for parameter in group["params"] if id(parameter) not in transferred]
            if not rest:
                group["lr"] *= settings.lr_scale
            elif scaled:
                group["params"] = rest
                own = {**group, "params": scaled, "lr": group["lr"] * settings.lr_scale}
                if "name" in group:
                    own["name"] = f"{group['name']} (transferred)"
                part.add_param_group(own)


class TrainableParameters:
    """Which parameters train, by their `requires_grad`, and the place of each in the optimizer's groups.

    A parameter that is frozen leaves its group, which stays even when it is empty, and loses its state there; one that
    trains again returns to its place. One that never had a place gets the one that `build`, which makes the optimizer
    anew, gives it. Parameters that were frozen when the optimizer was built stay where it was built with them.
    """

    def __init__(self, model: nn.Module, optimizer: Any, build: Callable[[], Any]) -> None:
        self.named, self.optimizer, self.build = dict(model.named_parameters()), optimizer, build
        # By optimizer and group, with what is frozen now. By place: restoring a checkpoint makes new dicts of groups.
        self.members: dict[str, list[list[nn.Parameter]]] = {}
        self.rates: dict[str, list[float]] = {}
        for name, part in optimizers_of(optimizer).items():
            self.members[name] = [list(group["params"]) for group in part.param_groups]
            self.rates[name] = [group["lr"] for group in part.param_groups]
        self.left_alone = {id(p) for p in self.named.values() if not p.requires_grad}
        self.outside = {id(p) for p in self.named.values() if p.requires_grad} - self._placed()
        self.frozen = self.at_start = self.frozen_now()
        self.held: list[str] = []
        self.placements: list[list[str]] = []

    def frozen_now(self) -> list[str]:
        return [name for name, parameter in self.named.items() if not parameter.requires_grad]

    def hold(self, parameters: Iterable[nn.Parameter]) -> None:
        """Freeze from the start what the optimizer was built with."""
        for parameter in parameters:
            parameter.requires_grad_(False)
        self.follow()
        self.held = [name for name in self.frozen if name not in self.at_start]
        self.at_start = self.frozen

    def follow(self) -> list[str]:
        """Make the groups hold what trains now; the groups that the optimizer gets anew for it, by name."""
        frozen = self.frozen_now()
        if frozen == self.frozen:
            return []
        if len(frozen) == len(self.named):
            raise ConfigError("no trainable parameter is left: every parameter of the model is frozen")
        known = self._placed() | self.outside
        new = [name for name in self.frozen if name not in frozen and id(self.named[name]) not in known]
        made = self._place(new, frozen) if new else []
        for name, part in optimizers_of(self.optimizer).items():
            for group, members in zip(part.param_groups, self.members[name], strict=True):
                group["params"] = [p for p in members if p.requires_grad or id(p) in self.left_alone]
                for parameter in members:
                    if not parameter.requires_grad and id(parameter) not in self.left_alone:
                        part.state.pop(parameter, None)
        if isinstance(self.optimizer, Optimizers):
            self.optimizer.update_parameters()
        self.frozen = frozen
        return made

    def _placed(self) -> set[int]:
        return {id(parameter) for groups in self.members.values() for group in groups for parameter in group}

    def _place(self, names: list[str], frozen: list[str]) -> list[str]:
        """Give the parameters the places that they have in an optimizer built now; the names of groups made for it."""
        missing, made = {id(self.named[name]): name for name in names}, []
        built = optimizers_of(self.build())
        for name, part in optimizers_of(self.optimizer).items():
            groups = built[name].param_groups if name in built else []
            for number, group in enumerate(groups):
                if not (own := [parameter for parameter in group["params"] if id(parameter) in missing]):
                    continue
                home = self._home(name, group, number if len(groups) == len(part.param_groups) else None)
                if home is None:
                    home = len(self.members[name])
                    self.members[name].append([])
                    self.rates[name].append(group["lr"])
                    part.add_param_group({**group, "params": list(own)})
                    made.append(str(group.get("name", home)))
                self.members[name][home] += own
                for parameter in own:
                    del missing[id(parameter)]
        if missing:
            raise ConfigError(
                f"parameter {next(iter(missing.values()))!r} trains from now on, but build_optimizer gives it no "
                "group; give it one, or leave it frozen"
            )
        self.placements.append(frozen)
        return made

    def _home(self, optimizer: str, group: dict[str, Any], number: int | None) -> int | None:
        """The place of the group that is the same: it shares parameters, or has the name or (unnamed) the number."""
        ids = {id(parameter) for parameter in group["params"]}
        for place, members in enumerate(self.members[optimizer]):
            if any(id(parameter) in ids for parameter in members):
                return place
        names = [own.get("name") for own in optimizers_of(self.optimizer)[optimizer].param_groups]
        if "name" in group:
            return names.index(group["name"]) if group["name"] in names else None
        return number

    def reset_rates(self) -> None:
        """Give every group the learning rate that a schedule starts from."""
        for name, part in optimizers_of(self.optimizer).items():
            for group, rate in zip(part.param_groups, self.rates[name], strict=True):
                group["lr"] = rate

    def state_dict(self) -> bool | list[list[str]]:
        """Whether what is frozen at the start is so now; where more has changed, what was frozen at each change.

        A change counts that gave a parameter its first place, and the last one: together they lead to the same groups.
        """
        if not self.placements and self.frozen == self.at_start:
            return bool(self.held)
        if not self.placements and self.frozen == [name for name in self.at_start if name not in self.held]:
            return False
        return [*self.placements, self.frozen]

    def freeze(self, names: Iterable[str]) -> None:
        """Freeze these parameters and no others."""
        frozen = set(names)
        for name, parameter in self.named.items():
            parameter.requires_grad_(name not in frozen)


class Freezing:
    """Follows what plugins freeze and let train again, and takes it into checkpoints."""

    def __init__(self, run: Run, engine: Engine) -> None:
        self.run, self.engine = run, engine

    def follow(self) -> None:
        """Bring optimizer, schedule and DDP in line with `requires_grad`, when that has changed."""
        engine, parameters = self.engine, self.engine.trainable
        before = parameters.frozen
        made = parameters.follow()
        if parameters.frozen == before:
            return
        if made:
            self._rebuild_schedule(made)
        if isinstance(engine.model, nn.parallel.DistributedDataParallel):
            inner = engine.model.module
            engine.model = None  # type: ignore[assignment]
            gc.collect()  # the old one's hooks on the gradients go with it
            engine.model = replicate(inner, engine.world, self.run.config.computational.find_unused_parameters)

    def _rebuild_schedule(self, made: list[str]) -> None:
        engine = self.engine
        assert engine.build_schedule is not None
        state = engine.schedule.state_dict()
        engine.trainable.reset_rates()
        schedule = engine.build_schedule()
        try:
            schedule.load_state_dict(state)
            if not _knows_all_groups(schedule):
                raise ValueError
        except (ValueError, KeyError, IndexError, TypeError):
            raise ConfigError(
                f"{', '.join(made)}: parameters that were not in the optimizer before train from now on in this group, "
                f"and the learning-rate schedule ({type(schedule).__name__}) cannot take a group up in mid-run; let "
                "build_model leave these parameters trainable, and freeze them in prepare_model or on_epoch_start: "
                "then they are in a group from the start"
            ) from None
        engine.schedule = self.run.schedule = schedule

    def state_dict(self) -> bool | list[list[str]]:
        parameters: TrainableParameters = self.engine.trainable
        return parameters.state_dict()

    def load_state_dict(self, state: bool | list[list[str]]) -> None:
        parameters = self.engine.trainable
        start = [name for name in parameters.at_start if state or name not in parameters.held]
        for frozen in state if isinstance(state, list) else [start]:
            parameters.freeze(frozen)
            self.follow()


def _knows_all_groups(schedule: Any) -> bool:
    """Whether schedulers of torch, which take a state over as it is, have a rate for each group."""
    if isinstance(schedule, Schedules):
        return all(map(_knows_all_groups, schedule.schedules.values()))
    scheduler = getattr(schedule, "scheduler", None)
    rates = [getattr(scheduler, name, None) for name in ("base_lrs", "min_lrs")]
    return all(len(own) == len(scheduler.optimizer.param_groups) for own in rates if isinstance(own, list))  # type: ignore[union-attr]
