"""`--help`, `plugins list` and the default plugins start without torch, pandas and scikit-learn."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "pandas", "sklearn")
COMMAND = """
from medtrain_cli.main import main
try:
    main({arguments})
except SystemExit as end:
    assert not end.code
"""
DEFAULTS = """
from importlib import import_module
from medtrain import plugins
for path in plugins.DEFAULT_PLUGINS.values():
    import_module(path.partition(":")[0])
"""


def heavy_after(code: str, **environment: str) -> list[str]:
    """The heavy packages that a fresh process has imported after running `code`."""
    code += f"\nimport sys\nprint('heavy:', *sorted(set({HEAVY}) & set(sys.modules)))\n"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, text=True, capture_output=True, check=True
    )
    return result.stdout.rpartition("heavy:")[2].split()


@pytest.mark.parametrize(
    "code",
    [COMMAND.format(arguments=["--help"]), COMMAND.format(arguments=["plugins", "list"]), DEFAULTS],
    ids=["--help", "plugins list", "default plugins"],
)
def test_nothing_heavy_is_imported(code):
    assert heavy_after(code) == []


def test_a_heavy_import_is_seen(tmp_path):
    (tmp_path / "planted.py").write_text("import pandas\n", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert heavy_after("import planted", PYTHONPATH=path) == ["pandas"]
