"""The table `[tool.medtrain.house]` of pyproject.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Numbers and exceptions of the rules."""

    core_code_lines: int
    """Code lines that the core may have without `testing/`."""
    face: list[str]
    """Modules of the core that plugins may import from."""
    stand_ins: list[str]
    """Further modules of the core that the plugins `standard` and `results` may import from."""
    import_module_tables: list[str]
    """Modules other than `__init__` that may call `import_module`, with names written in the same module."""
    import_module_allowed: list[str]
    """Modules that may call `import_module` with any name."""


def read(folder: Path) -> Settings:
    with (folder / "pyproject.toml").open("rb") as file:
        return Settings(**tomllib.load(file)["tool"]["medtrain"]["house"])
