"""Options that several commands share, and how they become a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from medtrain.errors import UsageError

if TYPE_CHECKING:
    from medtrain.config import RunConfig

FILE = click.Path(path_type=Path)


@dataclass
class Request:
    """What the user asked for on the command line."""

    plugin: Sequence[str] = ()
    preset: str | None = None
    config: Sequence[Path] = ()
    set_: Sequence[str] = ()
    data: Path | None = None
    images: Path | None = None
    name: str | None = None
    epochs: int | None = None
    seed: int | None = None
    notes: list[str] = field(default_factory=list)

    def resolve(self) -> RunConfig:
        """The configuration: preset < files < --set < flags. `notes`: what was chosen for the user."""
        from medtrain.catalog import presets
        from medtrain.config import configure

        names = list(self.plugin) or self._plugins_of_files()
        if not names:
            raise UsageError("name at least one plugin with --plugin; `medtrain plugins list` shows them")
        preset = self.preset
        if preset is None and self._has_no_data() and any("demo" in presets(name) for name in names):
            preset = "demo"
            self.notes.append("No data given: training the embedded demo (preset demo, synthetic data, CPU).")
        flags = {
            "--plugin": ("run", "plugins", names),
            "--preset": ("run", "preset", preset),
            "--data": ("data", "table", self.data),
            "--images": ("data", "images", self.images),
            "--name": ("run", "name", self.name),
            "--epochs": ("optimization", "num_epochs", self.epochs),
            "--seed": ("run", "seed", self.seed),
        }
        given = {flag: {section: {key: value}} for flag, (section, key, value) in flags.items() if value is not None}
        return configure(names, preset=preset, files=self.config, assignments=self.set_, flags=given)

    def _plugins_of_files(self) -> list[str]:
        from medtrain.config import read_toml

        names: list[str] = []
        for path in self.config:
            names = list(read_toml(path)[1].get("run", {}).get("plugins", names))
        return names

    def _has_no_data(self) -> bool:
        given = any(text.startswith(("data.table", "data.images")) for text in self.set_)
        return self.data is None and self.images is None and not self.config and not given


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options from which a configuration is made."""
    options = [
        click.option("--plugin", "-p", multiple=True, metavar="NAME", help="A plugin; the last one answers first."),
        click.option("--preset", metavar="NAME", help="Start from a plugin's preset."),
        click.option("--config", "-c", multiple=True, type=FILE, help="TOML file; later ones win."),
        click.option("--set", "set_", multiple=True, metavar="KEY=VALUE", help="One value; wins over files."),
        click.option("--data", type=FILE, help="Table of samples (data.table)."),
        click.option("--images", type=FILE, help="Folder of images (data.images)."),
        click.option("--name", help="Appended to the run directory's name."),
        click.option("--epochs", type=click.IntRange(min=1), help="Epochs (optimization.num_epochs)."),
        click.option("--seed", type=click.IntRange(min=0), help="Seed of the run (run.seed)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--quiet and --json."""
    command = click.option("--json", "as_json", is_flag=True, help="Last line of standard output: one JSON object.")(
        command
    )
    return click.option("--quiet", "-q", is_flag=True, help="No progress.")(command)
