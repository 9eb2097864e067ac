"""Trained models on disk: their weights, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from medtrain.config.sections import RunConfig
from medtrain.errors import ConfigError, UsageError
from medtrain.hookspecs import NONE
from medtrain.plugins import Plugins, load
from medtrain.protocols.weights import Weights
from medtrain.rundir import checkpoint
from medtrain.rundir.checkpoint import Checkpoint
from medtrain.rundir.directory import Maps
from medtrain.rundir.resolve import checkpoint_of
from medtrain.weights.state_dicts import read_about, read_state


@dataclass
class SavedModel:
    """A trained model on disk.

    path: the checkpoint's folder or the weights file. weights: with the options of the plugin that builds the model.
    plugin: that plugin; empty when the file does not say it, or the model was handed to the Trainer. config: the
    configuration, as far as it is recorded, as tables of TOML. about: what a weights file of medtrain notes; None for
    other files. checkpoint, run: for a checkpoint, all it holds and the run directory it is in.
    """

    path: Path
    weights: Weights
    plugin: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] | None = None
    checkpoint: Checkpoint | None = None
    run: Maps | None = None

    @property
    def file(self) -> Path:
        """The file with the weights."""
        return self.path if self.checkpoint is None else self.path / checkpoint.MODEL


def read_model(path: Path, name: str | None = None) -> SavedModel:
    """The model of a run directory, a split's folder, a checkpoint or a weights file.

    name: of a checkpoint; default: the best, else the last. Raises UsageError for a folder that is none of these,
    ConfigError for a file that is no state dict, CheckpointError for what is damaged or not there.
    """
    if _is_of_checkpoint(path):
        path = path.parent
    return _read_checkpoint(checkpoint_of(path, name)) if path.is_dir() else _read_file(path)


def read_weights(plugins: Plugins, plugin: str, config: RunConfig, paths: Sequence[Path]) -> Weights:
    """The weights for a plugin's model in files: medtrain's own, or those that a hook `import_weights` knows.

    paths: one file, run directory or checkpoint, or the several files that the plugin puts together. Raises
    ConfigError for a file that is not there or no state dict, CheckpointError for one that is damaged or refused.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such weights file")
    if len(paths) == 1 and _is_own(paths[0]):
        return _for_plugin(read_model(paths[0]), plugin)
    answer: Any = plugins.first_result("import_weights", config=config, paths=list(paths))
    if answer is NONE:
        answer = plugins.default_result("import_weights", paths=list(paths))
    if answer is None:
        raise UsageError(f"{plugin} reads weights from one file at a time, not from {len(paths)}")
    weights: Weights = answer
    return weights


def _is_of_checkpoint(path: Path) -> bool:
    return path.name == checkpoint.MODEL and (path.parent / checkpoint.MANIFEST).is_file()


def _is_own(path: Path) -> bool:
    """Whether medtrain wrote it, and recorded what it is."""
    return path.is_dir() or _is_of_checkpoint(path) or read_about(path) is not None


def _for_plugin(model: SavedModel, plugin: str) -> Weights:
    """The weights with the options that were recorded for this plugin."""
    weights = model.weights
    if model.checkpoint is not None:
        return Weights(weights.state, model.config.get("plugins", {}).get(plugin, {}), weights.notes)
    if model.plugin == plugin:
        return weights
    return Weights(weights.state, notes=[f"{model.path.name} was made for the plugin {model.plugin!r}."])


def _read_checkpoint(folder: Path) -> SavedModel:
    saved, problems = checkpoint.read_newest(folder)
    config = tomli.loads(saved.texts.get("config.toml", ""))
    plugin = _builder(config.get("run", {}).get("plugins", []))
    notes = [f"Damaged checkpoint passed over: {problem}" for problem in problems]
    weights = Weights(saved.model, config.get("plugins", {}).get(plugin, {}), notes)
    try:
        run = Maps.containing(folder)
    except UsageError:  # a checkpoint that was taken out of its run
        run = None
    return SavedModel(folder, weights, plugin, config, checkpoint=saved, run=run)


def _builder(plugins: list[str]) -> str:
    """The plugin of a run that is asked first for the model."""
    for name in reversed(plugins):
        if len(plugins) == 1 or "build_model" in load(name).hooks:
            return name
    return ""


def _read_file(path: Path) -> SavedModel:
    state, about = read_state(path), read_about(path)
    if about is None:
        return SavedModel(path, Weights(state))
    plugin, options = about.get("plugin", ""), about.get("options", {})
    config = {"run": {"plugins": [plugin]}, "plugins": {plugin: options}}
    return SavedModel(path, Weights(state, options), plugin, config, about)
