"""Installed plugins and commands as lists show them, from metadata and source text; nothing heavy is imported."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from medtrain.catalog import source_of
from medtrain.errors import PluginError
from medtrain.plugins import GROUP, bad_target, installed_points, load_point, target_of

COMMANDS = "medtrain.commands"
KIND_OF_HOOK = {
    "build_model": "model",
    "build_data": "data",
    "build_loss": "loss",
    "build_optimizer": "optimizer",
    "build_scheduler": "scheduler",
    "build_metrics": "metrics",
}


@dataclass
class PluginInfo:
    """A plugin as its metadata and source text show it, nothing imported."""

    name: str
    target: str
    distribution: str
    version: str
    kind: str = "?"
    summary: str = ""
    status: str = "not probed"
    error: str = ""


def discover() -> list[PluginInfo]:
    """Every plugin that installed distributions name, by name; nothing is imported."""
    probes = _read_probes()
    rows = []
    for point in sorted(installed_points(), key=lambda p: (p.name, p.value)):
        distribution = point.dist.name if point.dist else "?"
        version = point.dist.version if point.dist else "?"
        module, attribute = target_of(point)
        source = source_of(module)
        summary, kind = _describe(source, attribute)
        row = PluginInfo(point.name, point.value, distribution, version, kind, summary)
        if source is None:
            row.status = "broken"
            row.error = f"module {module} is not there" if module else bad_target(point.value)
        elif cached := probes.get(_probe_key(row)):
            row.status, row.error = cached["status"], cached["error"]
        rows.append(row)
    names = [row.name for row in rows]
    for row in rows:
        if names.count(row.name) > 1:
            others = [f"{r.distribution} ({r.target})" for r in rows if r.name == row.name and r is not row]
            row.status, row.error = "conflict", f"the name is also taken by {', '.join(others)}"
    return rows


def probe() -> list[PluginInfo]:
    """`discover`, after importing every plugin and checking its hooks; the results are remembered."""
    rows = discover()
    for row in rows:
        if row.status == "conflict":
            continue
        try:
            load_point(row.name, EntryPoint(row.name, row.target, GROUP))
            row.status, row.error = "ok", ""
        except PluginError as error:
            row.status, row.error = "broken", str(error)
    _write_probes(rows)
    return rows


def docstring(point: EntryPoint) -> str:
    """One line about a command, read from its source: its `short_help`, else the first line of its docstring."""
    module, attribute = target_of(point)
    return _describe(source_of(module), attribute)[0]


def commands() -> dict[str, EntryPoint]:
    """Commands that plugins add, by dotted name such as `data.synth.mammography`; nothing is imported."""
    return {point.name: point for point in entry_points(group=COMMANDS)}


def as_json(rows: Sequence[PluginInfo]) -> str:
    return json.dumps([asdict(row) for row in rows])


def _describe(source: Path | None, attribute: str) -> tuple[str, str]:
    """First docstring line and kind of the object `attribute` (or the module itself) in a source file."""
    try:
        tree: Any = ast.parse(source.read_text(encoding="utf-8")) if source else None
    except (OSError, SyntaxError, ValueError):  # ValueError: not UTF-8, or with null bytes
        return "", "?"
    if tree is None:
        return "", "?"
    for name in attribute.split(".") if attribute else []:
        tree = next((node for node in tree.body if getattr(node, "name", None) == name), None)
        if tree is None:
            return "", "?"
    text = _short_help(tree) or (ast.get_docstring(tree) or "").strip()
    functions = {getattr(node, "name", "") for node in tree.body}
    kind = next((kind for hook, kind in KIND_OF_HOOK.items() if hook in functions), "callback")
    return text.splitlines()[0] if text else "", kind


def _short_help(tree: ast.AST) -> str:
    """The argument `short_help` of a click command's decorator."""
    given = [keyword for call in getattr(tree, "decorator_list", ()) for keyword in getattr(call, "keywords", ())]
    texts = [k.value.value for k in given if k.arg == "short_help" and isinstance(k.value, ast.Constant)]
    return str(texts[0]) if texts else ""


def _probe_file() -> Path:
    from medtrain.data.cache import cache_dir

    return cache_dir() / "probes.json"


def _probe_key(row: PluginInfo) -> str:
    return f"{row.name} {row.target} {row.distribution} {row.version}"


def _read_probes() -> dict[str, dict[str, str]]:
    try:
        probes: dict[str, dict[str, str]] = json.loads(_probe_file().read_text(encoding="utf-8"))
        return probes
    except (OSError, ValueError):
        return {}


def _write_probes(rows: Sequence[PluginInfo]) -> None:
    results = {_probe_key(row): {"status": row.status, "error": row.error} for row in rows if row.status != "conflict"}
    try:
        path = _probe_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")
    except OSError:
        pass  # a cache that cannot be written is a cache that is empty
