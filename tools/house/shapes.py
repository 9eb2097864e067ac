"""How long a function of the core may be, and how many methods a class of it may have."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from house import imports
from house.settings import Settings
from house.tree import CORE, Module
from house.violation import Violation

LINES_PER_FUNCTION = 60
METHODS_PER_CLASS = 20
FREELY_PUBLIC = ("medtrain.trainer", "Trainer")  # its public methods are the user's verbs and do not count
Function = ast.FunctionDef | ast.AsyncFunctionDef


def check(modules: Mapping[str, Module], settings: Settings) -> Iterator[Violation]:
    core = {name: module for name, module in modules.items() if module.root == CORE}
    for module in core.values():
        for node in ast.walk(module.ast):
            if isinstance(node, Function):
                yield from _function(module, node)
            elif isinstance(node, ast.ClassDef):
                yield from _class(core, module, node)


def _function(module: Module, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Violation]:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    if lines > LINES_PER_FUNCTION:
        text = f"{node.name} has {lines} lines; at most {LINES_PER_FUNCTION}: give its steps names of their own"
        yield Violation(module.path, node.lineno, "function-size", text)


def _class(core: Mapping[str, Module], module: Module, node: ast.ClassDef) -> Iterator[Violation]:
    names = _methods(core, module, node)
    if (module.name, node.name) == FREELY_PUBLIC:
        names = {name for name in names if name.startswith("_")}
    if len(names) > METHODS_PER_CLASS:
        text = (
            f"{node.name} has {len(names)} methods, inherited ones of our own classes counted; at most "
            f"{METHODS_PER_CLASS}: give one part of its state a class of its own"
        )
        yield Violation(module.path, node.lineno, "class-size", text)


def _methods(core: Mapping[str, Module], module: Module, node: ast.ClassDef) -> set[str]:
    names = {child.name for child in node.body if isinstance(child, Function)}
    for base in node.bases:
        plain = base.value if isinstance(base, ast.Subscript) else base  # Base[int]
        home, name = module.name, ast.unparse(plain)
        found = _find_class(core, home, name)
        if found and found[1] is not node:
            names |= _methods(core, *found)
    return names


def _find_class(core: Mapping[str, Module], home: str, name: str) -> tuple[Module, ast.ClassDef] | None:
    """The class that `name` (perhaps dotted) stands for in a module, through imports and re-exports."""
    module = core.get(home)
    if module is None:
        return None
    for child in module.ast.body:
        if isinstance(child, ast.ClassDef) and child.name == name:
            return module, child
    first, _, rest = name.partition(".")
    for found in imports.read(module):
        if not found.name or found.bound != first:
            continue
        target = imports.imported_module(found, core)
        if target == module.name:
            continue
        is_module = target == f"{found.target}.{found.name}"
        inner = rest if is_module else found.name
        if inner:
            return _find_class(core, target, inner)
    return None
