"""`import_module` only where listed, and only with names that are written in the same file."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from house import imports
from house.settings import Settings
from house.tree import Module
from house.violation import Violation

RULE = "import-module"
TAKES_A_PART = ("get", "items", "keys", "partition", "rpartition", "split", "values")


def check(modules: Mapping[str, Module], settings: Settings) -> Iterator[Violation]:
    for module in modules.values():
        if module.name in settings.import_module_allowed:
            continue
        for call in imports.dynamic_calls(module):
            if not module.is_package and module.name not in settings.import_module_tables:
                text = (
                    "import_module is for __init__ files and the modules listed in pyproject.toml "
                    f"({', '.join(settings.import_module_tables)}); write an import statement"
                )
                yield Violation(module.path, call.lineno, RULE, text)
            elif not _is_written(imports.argument_of(call), _bindings(module.ast, call), set()):
                text = (
                    "import_module with a name that is not written in this file; give it a literal, or an entry of a "
                    "table of literals with whole module names"
                )
                yield Violation(module.path, call.lineno, RULE, text)


def _is_written(value: ast.expr | None, bindings: Mapping[str, list[ast.expr | None]], seen: set[str]) -> bool:
    """Whether an expression is a literal, or a part of one that a name stands for: TABLE[key][0].partition(":")."""
    match value:
        case ast.Constant(value=str()):
            return True
        case ast.Dict() | ast.List() | ast.Tuple() | ast.Set():
            parts = value.values if isinstance(value, ast.Dict) else value.elts
            return all(_is_written(part, bindings, seen) for part in parts)
        case ast.Subscript(value=inner):
            return _is_written(inner, bindings, seen)
        case ast.Call(func=ast.Attribute(value=inner, attr=method)) if method in TAKES_A_PART:
            return _is_written(inner, bindings, seen)
        case ast.Name(id=name):
            if name in seen:
                return True
            values = bindings.get(name, [None])
            return all(_is_written(each, bindings, seen | {name}) for each in values)
    return False


def _bindings(tree: ast.Module, call: ast.Call) -> dict[str, list[ast.expr | None]]:
    """What the names that a call can see are bound to: those of its function, else those of the module.

    A parameter is bound to None: its value is not written here.
    """
    bindings = _assigned(tree.body)
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if any(node is call for node in ast.walk(function)):
            bindings.update({node.arg: [None] for node in ast.walk(function.args) if isinstance(node, ast.arg)})
            for name, values in _assigned(function.body).items():
                bindings[name] = [*values, *([None] if bindings.get(name) == [None] else [])]
    return bindings


def _assigned(body: list[ast.stmt]) -> dict[str, list[ast.expr | None]]:
    found: dict[str, list[ast.expr | None]] = {}
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        match node:
            case ast.Assign(targets=targets, value=value):
                pass
            case ast.AnnAssign(target=target, value=value) | ast.NamedExpr(target=target, value=value):
                targets = [target]
            case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                targets = [target]
            case _:
                targets, value = [], None
        for target in targets:
            for name in ast.walk(target):
                if isinstance(name, ast.Name):
                    found.setdefault(name.id, []).append(value)
        waiting.extend(ast.iter_child_nodes(node))
    return found
