"""Small trees of source files to plant violations in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Plant = Callable[..., Path]
ROOTS = ("core/medtrain", "cli/medtrain_cli", "plugins/medtrain_plugins")


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Writes files, and an empty `__init__.py` into each folder that has none, below the three roots."""

    def write(files: dict[str, str]) -> Path:
        for name, text in {**{f"{root}/__init__.py": "" for root in ROOTS}, **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        for folder in {path.parent for root in ROOTS for path in (tmp_path / root).rglob("*.py")}:
            if not (folder / "__init__.py").exists():
                (folder / "__init__.py").write_text("", encoding="utf-8")
        return tmp_path

    return write
