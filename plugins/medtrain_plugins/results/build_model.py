"""A plugin's model outside of a run, freshly initialised or with weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medtrain.config import Layers, RunConfig
from medtrain.errors import ConfigError
from medtrain.plugins import Plugins
from medtrain.protocols.model import load_state, unwrap
from medtrain.protocols.weights import Weights
from medtrain.runtime import determinism
from medtrain.weights.reading import read as read_weights
from torch import nn

logger = logging.getLogger(__name__)


def build_model(plugin: str, weights: str | Path | Sequence[str | Path] | None = None, **options: Any) -> nn.Module:
    """A plugin's model, freshly initialised or with weights.

    plugin: its name. weights: what `medtrain weights import` reads: safetensors, a state dict, a run directory or
    checkpoint, a file of another project that the plugin knows, or the several files it is spread over.
    options: those of `[plugins.<plugin>]`; options recorded with the weights fill in those that are not given.
    Raises ConfigError for unknown options and files that are not there or no weights, PluginError for unknown
    plugins, and CheckpointError when weights are damaged, refused, or do not fit.
    """
    layers = Layers()
    layers.add({"plugins": {plugin: options}}, "build_model")
    paths = [] if weights is None else [weights] if isinstance(weights, str | Path) else list(weights)
    return build_with_weights(plugin, layers, [Path(path) for path in paths])[0]


def build_with_weights(plugin: str, given: Layers, paths: Sequence[Path]) -> tuple[nn.Module, Weights]:
    """A plugin's model, and what was read from the files (none: nothing) and loaded into it.

    given: options, which win over those recorded with the weights. In the answer, `options` are both together.
    """
    plugins = Plugins.of([plugin])
    named = {"run": {"plugins": [plugin]}}
    given.add(named, "medtrain")
    found = Weights({})
    if paths:
        found = read_weights(plugins, plugin, _provisional(given, plugins, named), paths)
        given = _fill_in(plugin, given, found, ", ".join(map(str, paths)))
    config = given.build(plugins.options()).with_fresh_model()
    determinism.seed_model(config.run.seed)
    model: nn.Module = unwrap(plugins.required("build_model", config=config))
    if paths:
        load_state(model, found.state, ", ".join(map(str, paths)))
    return model, found


def _provisional(given: Layers, plugins: Plugins, named: dict[str, Any]) -> RunConfig:
    """The given options, or the defaults when the given ones only make sense with those recorded with the weights."""
    try:
        return given.build(plugins.options()).with_fresh_model()
    except ConfigError:
        bare = Layers()
        bare.add(named, "medtrain")
        return bare.build(plugins.options()).with_fresh_model()


def _fill_in(plugin: str, given: Layers, found: Weights, where: str) -> Layers:
    """The given options over those recorded with the weights, which are told where they differ."""
    table = given.values.get("plugins")
    options = table.get(plugin) if isinstance(table, dict) else None
    options = options if isinstance(options, dict) else {}
    for name, value in options.items():
        recorded = found.options.get(name, value)
        if json.dumps(recorded, default=str) != json.dumps(value, default=str):
            logger.warning("%s=%s as given, though the weights were made with %s", name, value, recorded)
    both = Layers()
    both.add({"plugins": {plugin: found.options}}, where)
    both.add(given.values, "")
    both.sources |= given.sources
    found.options = {**found.options, **options}
    return both
