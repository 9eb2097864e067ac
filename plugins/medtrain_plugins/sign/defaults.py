"""The published settings stand wherever a run says nothing: those of presets/paper.toml."""

from __future__ import annotations

from pathlib import Path

from medtrain import RunConfig
from medtrain.config import read_toml
from medtrain.errors import ConfigError

from medtrain_plugins.sign.options import KArSLOptions

SECTIONS = ("data", "optimization", "scheduler", "validation")


def resolve_options(config: RunConfig, options: KArSLOptions) -> None:
    """Complete a configuration before anything is built from it or recorded.

    Keys that neither a preset, a file nor a flag gave get the published value, and the original flag `num_epochs`
    becomes `optimization.num_epochs`. What was recorded is complete, so a resumed run changes nothing here. Raises
    ConfigError when the number of epochs was given twice.
    """
    if (epochs := options.num_epochs) is not None:
        if "num_epochs" in config.optimization.model_fields_set and config.optimization.num_epochs != epochs:
            raise ConfigError(
                f"plugins.karsl.num_epochs: {epochs}, but optimization.num_epochs (--epochs) is "
                f"{config.optimization.num_epochs}; give one of them"
            )
        config.optimization.num_epochs = epochs
        options.num_epochs = None
    _, published = read_toml(Path(__file__).parent / "presets" / "paper.toml")
    for name in SECTIONS:
        section = getattr(config, name)
        for key, value in published[name].items():
            if key not in section.model_fields_set:
                setattr(section, key, value)
