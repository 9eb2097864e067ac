"""Models as the loop sees them: `model(batch) -> dict`, whatever they are wrapped in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from medtrain.errors import CheckpointError, first_lines
from medtrain.protocols.weights import State


class TensorModel(nn.Module):
    """A plain network (tensor in, tensor out) under the loop's contract.

    module: the network. input: the batch key it takes. output: the key its result gets.
    Checkpoints hold the plain network's state dict.
    """

    def __init__(self, module: nn.Module, input: str = "image", output: str = "logits") -> None:
        super().__init__()
        self.module, self.input, self.output = module, input, output

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {self.output: self.module(batch[self.input])}


class SupervisedModel(TensorModel):
    """A plain network with its loss: what a Trainer needs besides data.

    module: the network, tensor in, tensor out. loss: a loss of torch.nn or MONAI, or any function of (prediction,
    target) tensors that is the mean over samples. input, target: batch keys. output: the key of the prediction.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        input: str = "image",
        target: str = "label",
        output: str = "logits",
    ) -> None:
        super().__init__(module, input, output)
        self.loss, self.target = loss, target

    def as_loss(self) -> TensorLoss:
        """The loss in the core's terms."""
        return TensorLoss(self.loss, self.output, self.target)


class TensorLoss(nn.Module):
    """A loss of two tensors under the core's contract.

    Class indices stay integers; other targets get the type and shape of the prediction. A class-weighted mean of
    `nn.CrossEntropyLoss` is given as (sum, weight), so that it is the same on several processes.
    """

    def __init__(
        self,
        loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        prediction: str = "logits",
        target: str = "label",
    ) -> None:
        super().__init__()
        self.loss, self.prediction, self.target = loss, prediction, target

    def forward(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Any:
        prediction, target = outputs[self.prediction], batch[self.target]
        if isinstance(self.loss, (nn.CrossEntropyLoss, nn.NLLLoss)):
            if not target.is_floating_point():
                target = target.long().reshape(prediction.shape[0], *prediction.shape[2:])
            if self._is_weighted(target):
                weight: torch.Tensor = self.loss.weight  # type: ignore[assignment]
                return self.loss(prediction, target) * weight[target].sum(), weight[target].sum()
        elif target.numel() == prediction.numel():
            target = target.to(prediction.dtype).reshape(prediction.shape)
        return self.loss(prediction, target)

    def _is_weighted(self, target: torch.Tensor) -> bool:
        loss: Any = self.loss
        plain = getattr(loss, "label_smoothing", 0.0) == 0.0 and loss.ignore_index < 0
        return plain and loss.reduction == "mean" and loss.weight is not None and not target.is_floating_point()


def unwrap(model: nn.Module) -> nn.Module:
    """The network whose weights are saved: without DDP, torch.compile and `TensorModel`."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    if hasattr(model, "_orig_mod"):
        compiled: nn.Module = model._orig_mod  # type: ignore[assignment]
        return unwrap(compiled)
    return unwrap(model.module) if isinstance(model, TensorModel) else model


def training_mode(model: nn.Module) -> None:
    """Train mode, except for modules that are frozen as a whole: their statistics and dropout stay as in evaluation."""
    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, then back to what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def move_batch(value: Any, device: torch.device, memory_format: torch.memory_format | None = None) -> Any:
    """A batch on the device, its images (4-D, or 5-D volumes) in the given memory format."""
    if isinstance(value, torch.Tensor):
        value = value.to(device, non_blocking=True)
        dim = {None: 0, torch.channels_last: 4, torch.channels_last_3d: 5}[memory_format]
        return value.to(memory_format=memory_format) if value.dim() == dim and memory_format else value
    if isinstance(value, dict):
        return {key: move_batch(item, device, memory_format) for key, item in value.items()}
    return value


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Load a state dict into a model; every key must be there with its shape, and no other.

    A wrapper's prefix (`module.`, `_orig_mod.`) that is on all keys is dropped. Raises CheckpointError that names
    the keys; where: what the message calls the weights.
    """
    expected = model.state_dict()
    found = stripped(state, expected)
    problems = {
        "Missing keys": [key for key in expected if key not in found],
        "Unknown keys": [key for key in found if key not in expected],
        "Other shapes": [
            f"{key}: {tuple(found[key].shape)}, the model has {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in found and found[key].shape != tensor.shape
        ],
    }
    parts = [f"{name} ({len(keys)}):\n{first_lines(keys)}" for name, keys in problems.items() if keys]
    if parts:
        raise CheckpointError(f"{where}: the weights do not fit this model: {chr(10).join(parts)}")
    model.load_state_dict(found)


def stripped(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> State:
    """A state dict without the prefix of a wrapper (`module.`, `_orig_mod.`) that is on all of its keys."""
    found = dict(state)
    for prefix in ("module.", "_orig_mod."):
        if not found.keys() & expected.keys() and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): tensor for key, tensor in found.items()}
    return found
