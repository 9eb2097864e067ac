"""Installed plugins and their presets, read from metadata; nothing is imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from medtrain.errors import ConfigError, nearest
from medtrain.plugins import installed_points, target_of


def installed(names: Sequence[str]) -> list[dict[str, str]]:
    """For each name, the distribution and version that it comes from ("" for one that is not installed)."""
    found = {point.name: point.dist for point in installed_points()}
    rows = []
    for name in names:
        distribution = found.get(name)
        known = {"distribution": distribution.name, "version": distribution.version} if distribution else {}
        rows.append({"name": name, "distribution": "", "version": "", **known})
    return rows


def presets(plugin: str) -> dict[str, Path]:
    """Presets of a plugin by name: TOML files in the folder `presets` beside its module; nothing is imported."""
    sources = [source_of(target_of(point)[0]) for point in installed_points() if point.name == plugin]
    folders = [source.parent / "presets" for source in sources if source is not None]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def find_preset(plugins: Sequence[str], preset: str) -> list[Path]:
    """The files of a preset, one from each chosen plugin that has it."""
    by_plugin = {plugin: presets(plugin) for plugin in plugins}
    found = [files[preset] for files in by_plugin.values() if preset in files]
    if not found:
        known = sorted({name for files in by_plugin.values() for name in files})
        raise ConfigError(
            f"--preset {preset}: no chosen plugin has it{nearest(preset, known)}; known: {', '.join(known) or 'none'}"
        )
    return found


def source_of(module: str) -> Path | None:
    """The file of a module, found without importing it or its parents."""
    path: list[str] | None = None
    spec = None
    for part in module.split("."):
        spec = PathFinder.find_spec(part, path)
        if spec is None:
            return None
        path = list(spec.submodule_search_locations or [])
    return Path(spec.origin) if spec is not None and spec.origin else None
