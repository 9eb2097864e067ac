"""From plugins and layers to the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medtrain.catalog import find_preset
from medtrain.config.layers import Layers, read_toml
from medtrain.config.sections import RunConfig
from medtrain.plugins import Plugins

# Where values come from -> a table of sections, as in TOML.
Values = Mapping[str, Mapping[str, Any]]


def configure(
    plugins: Plugins | Sequence[Any],
    values: Values | None = None,
    *,
    preset: str | None = None,
    files: Sequence[Path] = (),
    assignments: Sequence[str] = (),
    flags: Values | None = None,
) -> RunConfig:
    """The configuration of a run with these plugins: preset < files < values < assignments < flags.

    plugins: names, or objects with hook methods; the names are the configuration's `run.plugins` unless a layer says
    otherwise. values, flags: tables of sections, by the source that messages name. assignments: `key=value`, as
    `--set` takes them. Raises ConfigError that names source, line and key, PluginError for unknown plugins.
    """
    chosen = plugins if isinstance(plugins, Plugins) else Plugins.of(plugins)
    layers = Layers()
    if not isinstance(plugins, Plugins):
        layers.add({"run": {"plugins": [plugin for plugin in plugins if isinstance(plugin, str)]}}, "plugins")
    for path in find_preset(chosen.names, preset) if preset is not None else ():
        text, table = read_toml(path)
        layers.add(table, f"preset {preset} ({path.name})", text)
    for path in files:
        layers.add_file(path)
    for source, sections in (values or {}).items():
        layers.add(sections, source)
    for assignment in assignments:
        layers.add_assignment(assignment, chosen.names)
    for source, sections in (flags or {}).items():
        layers.add(sections, source)
    return layers.build(chosen.options())
