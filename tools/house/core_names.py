"""The core knows neither the CLI nor a plugin, except for the default plugins' names in three listed places."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from house import imports
from house.settings import Settings
from house.tree import CLI, CORE, DEFAULTS, LAZY_FACES, PLUGINS, Module, bare_strings
from house.violation import Violation

RULE = "core-names"
TABLE = ("medtrain.plugins", "DEFAULT_PLUGINS")
OTHERS = re.compile(rf"\b({CLI}|{PLUGINS})\b[\w.]*")
DEFAULT_PLUGIN = re.compile(rf"{PLUGINS}\.({'|'.join(DEFAULTS)})\b")
PLACES = f"DEFAULT_PLUGINS of {TABLE[0]} and the lazy __init__ files of {' and '.join(LAZY_FACES)}"


def check(modules: Mapping[str, Module], settings: Settings) -> Iterator[Violation]:
    for module in modules.values():
        if module.root == CORE:
            yield from _imports(module)
            yield from _strings(module)


def _imports(module: Module) -> Iterator[Violation]:
    for found in imports.read(module):
        whole = f"{found.target}.{found.name}" if found.name else found.target
        if found.by_string or not OTHERS.match(whole):
            continue
        if module.name in LAZY_FACES and found.type_checking and DEFAULT_PLUGIN.match(whole):
            continue
        yield Violation(
            module.path,
            found.line,
            RULE,
            f"the core imports {whole}; have the plugin answer a hook instead (only the TYPE_CHECKING blocks of the "
            f"__init__ files of {' and '.join(LAZY_FACES)} may import {' and '.join(DEFAULTS)})",
        )


def _strings(module: Module) -> Iterator[Violation]:
    documentation = {id(node) for node in bare_strings(module.ast)}
    allowed = {id(node) for node in ast.walk(_table(module))}
    for node in ast.walk(module.ast):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in documentation:
            continue
        for name in OTHERS.finditer(node.value):
            in_place = module.name in LAZY_FACES or id(node) in allowed
            if not (in_place and DEFAULT_PLUGIN.match(name.group())):
                yield Violation(
                    module.path,
                    node.lineno,
                    RULE,
                    f"the core names {name.group()}; only {' and '.join(DEFAULTS)} may be named, and only in {PLACES}",
                )


def _table(module: Module) -> ast.AST:
    """The value of DEFAULT_PLUGINS, or an empty node."""
    if module.name == TABLE[0]:
        for node in module.ast.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if any(isinstance(target, ast.Name) and target.id == TABLE[1] for target in targets):
                return node
    return ast.Pass()
