"""Objects handed to the Trainer, as one more plugin: every split starts from them as they were given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from medtrain.errors import UsageError
from medtrain.hookspecs import hookimpl
from medtrain.protocols.metric import BatchMetric, Metric
from medtrain.protocols.model import SupervisedModel, TensorLoss, TensorModel
from medtrain.protocols.schedule import Schedule
from medtrain.user_objects.recipe import NotSerializable, callable_class, rebuild, recipe

Metrics = Mapping[str, Any] | Sequence[Metric]


class UserObjects:
    """Model, loss, metrics, optimizer and scheduler of a Python user.

    model: a network trained in place, or a function that makes one (then fresh for every split). loss: of two tensors
    (torch.nn, MONAI), or of (outputs, batch). metrics: metrics, or name -> metric or function of (prediction, target).
    optimizer, scheduler: ready-made, bound to the model's parameters.
    """

    def __init__(
        self,
        model: nn.Module | Callable[[], nn.Module] | None = None,
        loss: Callable[..., Any] | None = None,
        metrics: Metrics | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        scheduler: Any = None,
    ) -> None:
        self.model = _adapted(model, loss)
        self.loss = _loss(self.model, loss)
        self.metrics = None if metrics is None else as_metrics(metrics, self.loss)
        self.optimizer, self.scheduler = optimizer, scheduler
        if optimizer is not None and not isinstance(model, nn.Module):
            raise UsageError("optimizer: a ready-made optimizer needs the model whose parameters it holds")
        if scheduler is not None and optimizer is None:
            raise UsageError("scheduler: a ready-made scheduler needs the optimizer it changes; give it too")
        self._start = self._snapshot()

    def __bool__(self) -> bool:
        parts = (self.model, self.loss, self.metrics, self.optimizer, self.scheduler)
        return any(part is not None for part in parts)

    @hookimpl
    def build_model(self, config: Any) -> nn.Module | None:
        if self.model is None:
            return None
        if not isinstance(self.model, nn.Module):
            made = _adapted(self.model(), self.loss)
            assert isinstance(made, nn.Module)
            return made
        if config.fresh:  # an evaluation has weights of its own
            return copy.deepcopy(self.model)
        self._restore()
        return self.model

    @hookimpl
    def build_loss(self) -> Callable[..., Any] | None:
        return self.loss

    @hookimpl
    def build_metrics(self) -> list[Metric] | None:
        return self.metrics

    @hookimpl
    def build_optimizer(self) -> torch.optim.Optimizer | None:
        return self.optimizer

    @hookimpl
    def build_scheduler(self) -> Any | None:
        if self.scheduler is None or hasattr(self.scheduler, "after_step"):
            return self.scheduler
        each_step = isinstance(self.scheduler, (OneCycleLR, CyclicLR))
        return Schedule(self.scheduler, "step" if each_step else "epoch")

    def recipes(self) -> dict[str, Any]:
        """What a run directory keeps of the objects: recipes, or the reason why there is none."""
        kept = {"model": self.model, "loss": self.loss, "optimizer": self.optimizer, "scheduler": self.scheduler}
        kept_as = {name: described(value) for name, value in kept.items() if value is not None}
        if self.metrics is not None:
            kept_as["metrics"] = [described(metric) for metric in self.metrics]
        return kept_as

    def _snapshot(self) -> dict[str, Any]:
        """Everything of the given objects that training changes; state dicts lack buffers that are not saved."""
        if not isinstance(self.model, nn.Module):
            return {}
        tensors = [*self.model.named_parameters(), *self.model.named_buffers()]
        state = {"tensors": {name: tensor.detach().clone() for name, tensor in tensors}}
        for name in ("optimizer", "scheduler"):
            if (part := getattr(self, name)) is not None:
                state[name] = copy.deepcopy(part.state_dict())
        return state

    def _restore(self) -> None:
        assert isinstance(self.model, nn.Module)
        with torch.no_grad():
            for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
                tensor.copy_(self._start["tensors"][name])
        for name in ("optimizer", "scheduler"):
            if name in self._start:
                getattr(self, name).load_state_dict(copy.deepcopy(self._start[name]))


def from_recipes(described: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `UserObjects`, from what a run directory keeps; `given` ones come first.

    Raises UsageError naming the argument that has to be given again.
    """
    arguments = dict(given)
    kinds: dict[str, Callable[[type], bool]] = {
        "model": lambda kind: issubclass(kind, nn.Module),
        "loss": callable_class,
    }
    for name in ("model", "loss", "optimizer", "scheduler"):
        if arguments.get(name) is None and name in described:
            if name == "loss" and isinstance(arguments.get("model"), SupervisedModel):
                continue
            if name not in kinds:
                raise UsageError(f"this run was made with a ready-made {name}; give it again, as {name}=")
            arguments[name] = _again(described[name], kinds[name], name)
    if arguments.get("metrics") is None and "metrics" in described:
        is_metric = _is_metric
        arguments["metrics"] = [_again(item, is_metric, "metrics") for item in described["metrics"]]
    return arguments


def _again(described: Any, kind: Callable[[type], bool], name: str) -> Any:
    if isinstance(described, dict) and "unwritable" in described:
        raise UsageError(
            f"this run was made with an object that is not recorded ({described['unwritable']}); give {name}="
        )
    return rebuild(described, kind, name)


def described(value: Any) -> Any:
    """A recipe, or the reason why there is none."""
    try:
        return recipe(value)
    except NotSerializable as error:
        return {"unwritable": str(error)}


def _is_metric(kind: type) -> bool:
    return hasattr(kind, "rows") and hasattr(kind, "compute")


def _adapted(model: Any, loss: Any) -> Any:
    """A plain network under a loss of tensors takes and gives tensors too."""
    plain = isinstance(model, nn.Module) and not isinstance(model, TensorModel)
    return TensorModel(model) if plain and _of_tensors(loss) else model


def _loss(model: Any, loss: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if loss is None:
        return model.as_loss() if isinstance(model, SupervisedModel) else None
    if not _of_tensors(loss):
        return loss
    return TensorLoss(loss, model.output) if isinstance(model, TensorModel) else TensorLoss(loss)


def _of_tensors(loss: Any) -> bool:
    """Whether it is a loss of (prediction, target): torch's classes and those derived from them, MONAI's included."""
    return isinstance(loss, nn.modules.loss._Loss)


def as_metrics(metrics: Metrics, loss: Any) -> list[Metric]:
    """Metrics from what a user gives: metrics, or name -> metric or function of (prediction, target)."""
    if not isinstance(metrics, Mapping):
        return list(metrics)
    prediction, target = getattr(loss, "prediction", "logits"), getattr(loss, "target", "label")
    made: list[Metric] = []
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            metric = BatchMetric(name, metric, prediction, target)
        elif list(metric.names) != [name] and len(metric.names) == 1:
            raise UsageError(
                f"metrics: {name!r} names a metric whose value is called {metric.names[0]!r}; use one name"
            )
        made.append(metric)
    return made
