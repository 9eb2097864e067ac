"""What a checkpoint holds of a training: its weights, and a dict of parts that each know their own state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from medtrain.plugins import Plugins
from medtrain.protocols.model import load_state, unwrap
from medtrain.rundir.checkpoint import Checkpoint
from medtrain.training.engine import Engine


class Part(Protocol):
    """A part of the training. Its state is a tree of dicts, lists, numbers, strings and tensors; None: nothing."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Attribute:
    """A part that is one value of an object."""

    def __init__(self, owner: Any, name: str) -> None:
        self.owner, self.name = owner, name

    def state_dict(self) -> Any:
        return getattr(self.owner, self.name)

    def load_state_dict(self, state: Any) -> None:
        setattr(self.owner, self.name, state)


class PluginStates:
    """The plugins that have a state, by name. They are asked on the main process only, which writes it."""

    def __init__(self, plugins: Plugins, is_main: bool) -> None:
        self.plugins, self.is_main = plugins.stateful, is_main

    def state_dict(self) -> dict[str, Any]:
        states = [(name, plugin.state_dict()) for name, plugin in self.plugins.items()] if self.is_main else []
        return {name: state for name, state in states if state is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, plugin in self.plugins.items():
            if name in state:
                plugin.load_state_dict(state[name])


def capture(
    engine: Engine, parts: Mapping[str, Part | None], facts: dict[str, Any], texts: dict[str, str]
) -> Checkpoint:
    """The training as it stands. Every process calls it: some parts gather what is theirs."""
    model = unwrap(engine.plain).state_dict()
    state = {name: None if part is None else part.state_dict() for name, part in parts.items()}
    if engine.ema is not None:
        state["ema"] = {"training_model": model, "n_averaged": engine.ema.n_averaged}
        model = unwrap(engine.ema.module).state_dict()
    return Checkpoint(model, state, facts, texts)


def restore(saved: Checkpoint, engine: Engine, parts: Mapping[str, Part | None]) -> None:
    """Take up the weights and the state of the parts; of two parts, the one named first goes first."""
    weights, state = saved.model, saved.state
    if engine.ema is not None:
        load_state(unwrap(engine.ema.module), saved.model, "checkpoint")
        engine.ema.n_averaged.copy_(state["ema"]["n_averaged"])
        weights = state["ema"]["training_model"]
    load_state(unwrap(engine.plain), weights, "checkpoint")
    for name, part in parts.items():
        if part is not None and state[name] is not None:
            part.load_state_dict(state[name])
