"""How much a folder, a file and the core may hold."""

from __future__ import annotations

import io
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping

from house.settings import Settings
from house.tree import CLI, CORE, PLUGINS, Module, bare_strings
from house.violation import Violation

MODULES_PER_FOLDER = 15
LINES_PER_FILE = {CORE: 400, CLI: 400, PLUGINS: 500}
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def check(modules: Mapping[str, Module], settings: Settings) -> Iterator[Violation]:
    yield from _folders(modules)
    for module in modules.values():
        lines, limit = len(module.text.splitlines()), LINES_PER_FILE[module.root]
        if lines > limit:
            text = f"{lines} lines; at most {limit}: move one subject into a file of its own"
            yield Violation(module.path, limit + 1, "file-size", text)
    size = core_code_lines(modules)
    if size > settings.core_code_lines:
        text = (
            f"the core has {size} code lines without testing/; at most {settings.core_code_lines}: move to a plugin "
            "what is not hooks, contracts, assembly, the loop or the run directory (the number is core_code_lines in "
            "pyproject.toml; a reason for a higher one goes into docs/decisions.md)"
        )
        yield Violation("core/medtrain/__init__.py", 1, "core-size", text)


def core_code_lines(modules: Mapping[str, Module]) -> int:
    testing = f"{CORE}.testing"
    return sum(
        code_lines(module)
        for module in modules.values()
        if module.root == CORE and module.name != testing and not module.name.startswith(f"{testing}.")
    )


def code_lines(module: Module) -> int:
    """Lines with code on them: no blank lines, comments or docstrings."""
    documentation = {
        line for node in bare_strings(module.ast) for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        in_docstring = token.type == tokenize.STRING and token.start[0] in documentation
        if token.type not in NO_CODE and not in_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
    text = module.text.splitlines()
    return sum(1 for line in lines if text[line - 1].strip())


def _folders(modules: Mapping[str, Module]) -> Iterator[Violation]:
    counts = Counter(module.folder for module in modules.values() if not module.is_package)
    for folder, count in sorted(counts.items()):
        if count > MODULES_PER_FOLDER:
            text = f"{count} modules in one folder; at most {MODULES_PER_FOLDER}: group them into sub-packages"
            yield Violation(f"{folder}/__init__.py", 1, "folder-size", text)
