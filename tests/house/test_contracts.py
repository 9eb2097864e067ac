"""The project's own import contracts, on small planted trees: kept when clean, broken by one import."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LAYERS, PLUGINS = [contract["name"] for contract in tomllib.loads(PYPROJECT)["tool"]["importlinter"]["contracts"]]
FOR_TYPES = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
CLEAN = {
    "core/medtrain/__init__.py": f"{FOR_TYPES}from medtrain_plugins.standard.callbacks import Stop\n",
    "core/medtrain/data/__init__.py": f"{FOR_TYPES}from medtrain_plugins.results.folds import Folds\n",
    "core/medtrain/run.py": "",
    "cli/medtrain_cli/main.py": "from medtrain.run import Run\n",
    "plugins/medtrain_plugins/standard/callbacks.py": "from medtrain import hookimpl\n",
    "plugins/medtrain_plugins/results/folds.py": "from medtrain.data import Data\n",
    "plugins/medtrain_plugins/imaging/__init__.py": "from medtrain_plugins.common import onnx_file\n",
    "plugins/medtrain_plugins/common/onnx_file.py": "",
    "plugins/medtrain_plugins/mammography/plugin.py": "from medtrain_plugins.imaging import read\n",
    "plugins/medtrain_plugins/mirai/plugin.py": "from medtrain_plugins.mammography.plugin import RiskPlugin\n",
    "plugins/medtrain_plugins/brain/data/volumes.py": "from medtrain_plugins.imaging import read\n",
    "plugins/medtrain_plugins/brain/plugin.py": "from medtrain import hookimpl\nfrom medtrain.data import Data\n",
}


def lint(folder: Path) -> list[str]:
    """Names of the contracts that are broken."""
    roots = [str(folder / name) for name in ("core", "cli", "plugins")]
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots), "COLUMNS": "200"},
        text=True,
        capture_output=True,
    )
    verdicts = {
        name: verdict
        for name in (LAYERS, PLUGINS)
        for verdict in ("KEPT", "BROKEN")
        if _said(result.stdout, name, verdict)
    }
    assert len(verdicts) == 2, result.stdout + result.stderr
    names = [name for name, verdict in verdicts.items() if verdict == "BROKEN"]
    assert result.returncode == int(bool(names))
    return names


def _said(output: str, name: str, verdict: str) -> bool:
    return f"{name} {verdict}" in " ".join(output.split())


def test_a_clean_tree_keeps_the_contracts(plant):
    assert lint(plant({**CLEAN, "pyproject.toml": PYPROJECT})) == []


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("core/medtrain/run.py", "def go():\n    from medtrain_cli import main\n", LAYERS),
        ("core/medtrain/run.py", f"{FOR_TYPES}from medtrain_plugins.common import onnx_file\n", LAYERS),
        ("cli/medtrain_cli/run.py", "from medtrain_plugins.brain import plugin\n", LAYERS),
        ("plugins/medtrain_plugins/brain/plugin.py", "def go():\n    import medtrain_cli.main\n", LAYERS),
        ("plugins/medtrain_plugins/new/plugin.py", "from medtrain_plugins.mammography.plugin import x\n", PLUGINS),
        ("plugins/medtrain_plugins/mammography/plugin.py", "from medtrain_plugins.mirai.plugin import x\n", PLUGINS),
        (
            "plugins/medtrain_plugins/common/onnx_file.py",
            "def go():\n    from medtrain_plugins.brain import x\n",
            PLUGINS,
        ),
        ("plugins/medtrain_plugins/brain/plugin.py", "from medtrain_plugins.standard.callbacks import x\n", PLUGINS),
    ],
)
def test_one_import_breaks_a_contract(file, text, name, plant):
    assert lint(plant({**CLEAN, "pyproject.toml": PYPROJECT, file: text})) == [name]
