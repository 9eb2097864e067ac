"""A plugin's model outside of a run, freshly initialised or with weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain import RunConfig, Trainer
from medtrain.config import Layers, configure
from medtrain.errors import ConfigError
from medtrain.weights import Weights, read_weights
from torch import nn

logger = logging.getLogger("medtrain")


def build_model(plugin: str, weights: str | Path | Sequence[str | Path] | None = None, **options: Any) -> nn.Module:
    """A plugin's model, freshly initialised or with weights.

    plugin: its name. weights: what `medtrain weights import` reads: safetensors, a state dict, a run directory or
    checkpoint, a file of another project that the plugin knows, or the several files it is spread over.
    options: those of `[plugins.<plugin>]`; options recorded with the weights fill in those that are not given.
    Raises ConfigError for unknown options and files that are not there or no weights, PluginError for unknown
    plugins, and CheckpointError when weights are damaged, refused, or do not fit.
    """
    paths = [] if weights is None else [weights] if isinstance(weights, str | Path) else list(weights)
    return build_with_weights(plugin, [Path(path) for path in paths], options)[0]


def build_with_weights(
    plugin: str, paths: Sequence[Path], options: Mapping[str, Any] | None = None, assignments: Sequence[str] = ()
) -> tuple[nn.Module, Weights]:
    """A plugin's model, and what was read from the files (none: nothing) and loaded into it.

    options, assignments: win over the options recorded with the weights. In the answer, `options` are both together.
    """
    values = {"build_model": {"plugins": {plugin: options or {}}}}
    found = Weights({})
    where = ", ".join(map(str, paths))
    if paths:
        config = _provisional(plugin, values, assignments)
        found = read_weights(Trainer(config=config).plugins, plugin, config.with_fresh_model(), paths)
        values = {where: {"plugins": {plugin: dict(found.options)}}, **values}
        found.options |= _given(plugin, values["build_model"], assignments, found.options)
    trainer = Trainer(config=configure([plugin], values, assignments=assignments))
    return trainer.build_model(found.state if paths else None, where), found


def _provisional(plugin: str, values: Mapping[str, Any], assignments: Sequence[str]) -> RunConfig:
    """The given options, or the defaults when the given ones only make sense with those recorded with the weights."""
    try:
        return configure([plugin], values, assignments=assignments)
    except ConfigError:
        return configure([plugin])


def _given(
    plugin: str, values: Mapping[str, Any], assignments: Sequence[str], recorded: Mapping[str, Any]
) -> dict[str, Any]:
    """The plugin's options as they were given; a warning for those that were recorded otherwise with the weights."""
    layers = Layers()
    layers.add(values, "")
    for assignment in assignments:
        layers.add_assignment(assignment, [plugin])
    table = layers.values["plugins"]
    options = table.get(plugin) if isinstance(table, dict) else None
    options = options if isinstance(options, dict) else {}  # what is no table is refused when it is used
    for name, value in options.items():
        if json.dumps(recorded.get(name, value), default=str) != json.dumps(value, default=str):
            logger.warning("%s=%s as given, though the weights were made with %s", name, value, recorded[name])
    return options
