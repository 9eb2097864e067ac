"""The three source folders, every module read and parsed."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOTS = {"medtrain": "core", "medtrain_cli": "cli", "medtrain_plugins": "plugins"}
CORE, CLI, PLUGINS = ROOTS
DEFAULTS = ("standard", "results")  # the plugins that are always registered
LAZY_FACES = ("medtrain", "medtrain.data")  # the core's only packages that offer what default plugins define


@dataclass(frozen=True)
class Module:
    """One file: its dotted name, its path below the repository, and what is in it."""

    name: str
    path: str
    text: str
    ast: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.endswith("/__init__.py")

    @property
    def package(self) -> str:
        """The package that relative imports start from."""
        return self.name if self.is_package else self.name.rpartition(".")[0]

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


def read(folder: Path) -> dict[str, Module]:
    """Every module of the three roots by its dotted name."""
    modules = {}
    for root, parent in ROOTS.items():
        for file in sorted((folder / parent / root).rglob("*.py")):
            parts = file.relative_to(folder / parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            text = file.read_text(encoding="utf-8")
            path = file.relative_to(folder).as_posix()
            modules[name] = Module(name, path, text, ast.parse(text, filename=path))
    return modules


def bare_strings(tree: ast.AST) -> list[ast.Constant]:
    """Docstrings, and strings below an attribute that serve as its docstring."""
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
