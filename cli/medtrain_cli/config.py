"""`medtrain config show|check|schema`."""

from __future__ import annotations

import json
from typing import Any

import click

from medtrain_cli.options import Request, request_options


@click.command()
@request_options
def show(**asked: Any) -> None:
    """Print the configuration that `medtrain run` with the same options would have, as TOML."""
    click.echo(Request(**asked).resolve().to_toml(), nl=False)


@click.command()
@request_options
def check(**asked: Any) -> None:
    """Check configuration files; every problem is named with file, line and key."""
    config = Request(**asked).resolve()
    click.echo(f"ok: {', '.join(config.run.plugins)}")


@click.command()
@click.option("--plugin", "-p", multiple=True, help="Include this plugin's options.")
def schema(plugin: tuple[str, ...]) -> None:
    """Print the JSON schema of the configuration."""
    from medtrain import plugins
    from medtrain.config import RunConfig

    described = RunConfig.model_json_schema()
    options = {name: model for name, model in plugins.Plugins.of(plugin).options().items() if model is not None}
    for name, model in options.items():
        inner = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
        for key, value in inner.pop("$defs", {}).items():
            described["$defs"][f"{name}.{key}"] = value
        described["$defs"][name] = inner
    described["properties"]["plugins"] = {
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/{name}"} for name in options},
    }
    click.echo(json.dumps(described, indent=1))
