"""`medtrain plugins list|info|explain|check`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

import click
from medtrain import hookspecs, plugins
from medtrain.catalog import presets

from medtrain_cli import catalog

# What the core does when nobody answers, not even a default plugin.
CORE_ANSWERS = {
    "build_metrics": "no metric besides the loss",
    "build_augmentation": "no augmentation",
    "evaluate": "loop over the group, rows to metrics",
}


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
@click.option("--probe", is_flag=True, help="Import every plugin and check its hooks.")
def list_plugins(as_json: bool, probe: bool) -> None:
    """Show every installed plugin; a broken one is a row with its error."""
    rows = catalog.probe() if probe else catalog.discover()
    if as_json:
        click.echo(catalog.as_json(rows))
        return
    # Written by hand: rich alone would take longer to import than this command may take.
    cells = [("NAME", "KIND", "DISTRIBUTION", "STATUS", "SUMMARY")]
    cells += [(r.name, r.kind, f"{r.distribution} {r.version}", r.status, r.error or r.summary) for r in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(4)]
    for row in cells:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False)) + f"  {row[4]}")


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def info(name: str, as_json: bool) -> None:
    """Show a plugin's options (type, default, description), hooks and presets."""
    loaded = plugins.load(name)
    model = loaded.options()
    options = [_option(key, field) for key, field in model.model_fields.items()] if model else []
    names = sorted(presets(name))
    if as_json:
        click.echo(json.dumps({"name": name, "options": options, "hooks": sorted(loaded.hooks), "presets": names}))
        return
    from medtrain.console import console, table

    screen = console()
    row = next((r for r in catalog.discover() if r.name == name), None)
    if row:
        screen.print(f"{row.name}  ({row.distribution} {row.version}, {row.target})\n{row.summary}\n")
    rows = [[option["name"], option["type"], option["default"], option["description"]] for option in options]
    screen.print(table(f"Options of [plugins.{name}]", ["option", "type", "default", "description"], rows))
    screen.print(f"\nHooks    {', '.join(hook for hook in hookspecs.ALL if hook in loaded.hooks)}")
    screen.print(f"Presets  {', '.join(names) or 'none'}")


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON array.")
def explain(names: tuple[str, ...], as_json: bool) -> None:
    """Show who answers which hook when these plugins are combined in this order."""
    rows = order_of_asking(plugins.Plugins.of(names))
    if as_json:
        click.echo(json.dumps(rows))
        return
    from medtrain.console import console, table

    shown = []
    for row in rows:
        asked = [*row["plugins"], *([f"core: {row['default']}"] if row["default"] else [])]
        if row["plugins"] or row["default"]:
            shown.append([row["hook"], row["rule"], " > ".join(asked)])
    console().print(table("", ["hook", "rule", "order of asking"], shown))


@click.command()
@click.argument("name")
def check(name: str) -> int:
    """Check a plugin against medtrain's conformance kit; exit code 1 when something fails."""
    from medtrain.testing import check_plugin

    findings = check_plugin(name)
    for finding in findings:
        click.echo(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.what}{'' if finding.ok else ': ' + finding.detail}")
    return 0 if all(finding.ok for finding in findings) else 1


def order_of_asking(chosen: plugins.Plugins) -> list[dict[str, Any]]:
    """For each hook, who is asked, in the order of asking."""
    rows = []
    for hook in hookspecs.ALL:
        names = [plugin.name for plugin in chosen.loaded if hook in plugin.hooks]
        answer = next((_first_line(p.hooks[hook]) for p in chosen.defaults if hook in p.hooks), "")
        if hook in hookspecs.LIFECYCLE:
            rows.append({"hook": hook, "rule": "all, in this order", "plugins": names, "default": answer})
        elif hook in ("plugin_options", "report_sections", "prepare_model"):
            rows.append({"hook": hook, "rule": "each for itself", "plugins": names, "default": answer})
        else:
            default = answer or CORE_ANSWERS.get(hook, "nothing: a plugin must answer")
            rows.append({"hook": hook, "rule": "first answer wins", "plugins": names[::-1], "default": default})
    return rows


def _first_line(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _option(name: str, field: Any) -> dict[str, Any]:
    kind = str(field.annotation).replace("typing.", "") if not isinstance(field.annotation, type) else None
    default = "(required)" if field.is_required() else field.get_default(call_default_factory=True)
    return {
        "name": name,
        "type": kind or field.annotation.__name__,
        "default": default if isinstance(default, (int, float, str, bool, type(None))) else str(default),
        "description": field.description or "",
    }
