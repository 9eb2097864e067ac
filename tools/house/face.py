"""Plugins import from the core's public modules, and of these only what `__all__` lists."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from house import imports
from house.settings import Settings
from house.tree import CORE, DEFAULTS, PLUGINS, Module
from house.violation import Violation

RULE = "face"


def check(modules: Mapping[str, Module], settings: Settings) -> Iterator[Violation]:
    listed = {name: _listed(modules[name]) for name in settings.face if name in modules}
    for name in settings.face:
        if name not in modules:
            yield Violation("pyproject.toml", 1, RULE, f"{name} is on the face and does not exist; write it")
        elif listed[name] is None:
            text = f"{name} is on the face and has no __all__ written as a list of names; add it"
            yield Violation(modules[name].path, 1, RULE, text)
    used = set()
    for module in modules.values():
        if module.root != PLUGINS:
            continue
        for found in imports.read(module):
            if found.target.partition(".")[0] != CORE:
                continue
            if found.target in settings.stand_ins and _plugin(module) in DEFAULTS:
                used.add(found.target)
            elif text := _wrong(found, settings, listed):
                yield Violation(module.path, found.line, RULE, text)
    for name in settings.stand_ins:
        if name not in used:
            text = f"neither of {' and '.join(DEFAULTS)} uses {name}; take it off stand_ins"
            yield Violation("pyproject.toml", 1, RULE, text)


def _wrong(found: imports.Import, settings: Settings, listed: Mapping[str, set[str] | None]) -> str:
    """What is wrong with an import from the core; "" if nothing is."""
    if not found.name:
        return f"a plugin takes names from the core: write `from {found.target} import NAME`"
    if found.target not in settings.face:
        return (
            f"{found.target} is internal to the core; import {found.name} from a module of the face "
            f"({', '.join(settings.face)}), after adding it there if a stranger's plugin needs it too"
        )
    whole = f"{found.target}.{found.name}"
    if whole in settings.face:
        return f"{whole} is a module: write `from {whole} import NAME`"
    names = listed.get(found.target)
    if names is not None and found.name not in names:
        return f"{found.name} is not in __all__ of {found.target}; add it there, or do without it"
    return ""


def _plugin(module: Module) -> str:
    """The folder of `medtrain_plugins` that a module is in."""
    return module.name.partition(".")[2].partition(".")[0]


def _listed(module: Module) -> set[str] | None:
    for node in module.ast.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            try:
                return set(ast.literal_eval(node.value))  # type: ignore[attr-defined]
            except ValueError:
                return None
    return None
