"""All imports of a module: also those inside functions, under TYPE_CHECKING, and by `import_module("...")`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from house.tree import Module


@dataclass(frozen=True)
class Import:
    """`from target import name` in `line` of `importer`; with an empty name, `import target`."""

    importer: Module
    line: int
    target: str
    name: str = ""
    bound: str = ""
    """What the name is called in the importing module."""
    type_checking: bool = False
    by_string: bool = False
    """Whether it is a call of `import_module`."""


def read(module: Module) -> list[Import]:
    found = []
    for node, type_checking in _walk(module.ast, False):
        if isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.partition(".")[0]
                found.append(Import(module, node.lineno, alias.name, "", bound, type_checking))
        elif isinstance(node, ast.ImportFrom):
            target = _absolute(module, node)
            for alias in node.names:
                bound = alias.asname or alias.name
                found.append(Import(module, alias.lineno, target, alias.name, bound, type_checking))
    for call in dynamic_calls(module):
        name = literal_argument(call)
        if name:
            found.append(Import(module, call.lineno, name, by_string=True))
    return found


def imported_module(found: Import, modules: Mapping[str, Module]) -> str:
    """The module of ours that is imported, or "".

    `from a.b import c` imports a.b.c where that is a module, and a.b where c is a name in it.
    """
    submodule = f"{found.target}.{found.name}"
    if found.name and submodule in modules:
        return submodule
    return found.target if found.target in modules else ""


def dynamic_calls(module: Module) -> list[ast.Call]:
    """Calls of `importlib.import_module` and `__import__`, under whatever name."""
    names = {"__import__"}
    for node in ast.walk(module.ast):
        if isinstance(node, ast.ImportFrom) and node.module == "importlib":
            names.update(alias.asname or alias.name for alias in node.names if alias.name == "import_module")
    return [node for node in ast.walk(module.ast) if isinstance(node, ast.Call) and _imports(node.func, names)]


def literal_argument(call: ast.Call) -> str:
    """The module name that a call is given as a literal, or ""."""
    argument = argument_of(call)
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else ""


def argument_of(call: ast.Call) -> ast.expr | None:
    """The expression of the module's name in a call of `import_module`."""
    return call.args[0] if call.args else next((keyword.value for keyword in call.keywords), None)


def _imports(function: ast.expr, names: set[str]) -> bool:
    if isinstance(function, ast.Name):
        return function.id in names
    return isinstance(function, ast.Attribute) and function.attr in ("import_module", "__import__")


def _walk(node: ast.AST, type_checking: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it is inside `if TYPE_CHECKING:`."""
    yield node, type_checking
    guarded = node.body if isinstance(node, ast.If) and _asks_type_checking(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, type_checking or child in guarded)


def _asks_type_checking(test: ast.expr) -> bool:
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
