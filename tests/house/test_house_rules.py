"""Each rule of `python -m house`: silent on a clean tree, broken by one planted violation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from house import circles, core_names, dynamic, face, shapes, sizes, tree
from house.settings import Settings, read

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(
    core_code_lines=40,
    face=["medtrain", "medtrain.data"],
    stand_ins=[],
    import_module_tables=["medtrain.plugins", "medtrain_cli.main"],
    import_module_allowed=["medtrain.user_objects.recipe"],
)
LAZY = '''"""The lazy face; its plugins are in medtrain_plugins."""
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medtrain.trainer import Trainer
    from medtrain_plugins.standard.callbacks import Stop

_HOMES = {"Stop": "medtrain_plugins.standard.callbacks", "Trainer": "medtrain.trainer"}
__all__ = ["Stop", "Trainer", "hookimpl"]


def __getattr__(name):
    return getattr(import_module(_HOMES[name]), name)
'''
CLEAN = {
    "core/medtrain/__init__.py": LAZY,
    "core/medtrain/trainer.py": "from medtrain import plugins\n\n\nclass Trainer: ...\n",
    "core/medtrain/plugins.py": 'DEFAULT_PLUGINS = ["medtrain_plugins.standard.callbacks:Stop"]\n',
    "core/medtrain/data/__init__.py": 'from medtrain.data.loader import Loader\n\n__all__ = ["Loader"]\n',
    "core/medtrain/data/loader.py": "class Loader: ...\n",
    "core/medtrain/user_objects/recipe.py": "import importlib\n\n\ndef find(at):\n    importlib.import_module(at)\n",
    "cli/medtrain_cli/main.py": (
        "from importlib import import_module\n\n"
        'COMMANDS = {"run": ("medtrain_cli.run:run", "Train.")}\n\n\n'
        'def get(name):\n    module, _, item = COMMANDS[name][0].partition(":")\n    return import_module(module)\n'
    ),
    "plugins/medtrain_plugins/standard/callbacks.py": "from medtrain import hookimpl\n\n\nclass Stop: ...\n",
    "plugins/medtrain_plugins/brain/plugin.py": "from medtrain import Trainer\nfrom medtrain.data import Loader\n",
}


def broken(rule: ModuleType, folder: Path, settings: Settings = SETTINGS) -> list[str]:
    return [str(violation) for violation in sorted(rule.check(tree.read(folder), settings))]


@pytest.mark.parametrize("rule", [core_names, face, circles, dynamic, sizes, shapes], ids=lambda rule: rule.__name__)
def test_a_clean_tree_breaks_no_rule(rule, plant):
    assert broken(rule, plant(CLEAN)) == []


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        ("run.py", "import medtrain_plugins.brain.plugin\n", "run.py:1"),
        ("run.py", "def go():\n    from medtrain_cli import main\n", "run.py:2"),
        (
            "run.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from medtrain_plugins.standard import x\n",
            "run.py:3",
        ),
        ("run.py", 'STOP = "medtrain_plugins.standard.callbacks"\n', "run.py:1"),
        ("run.py", 'def go(name):\n    return f"medtrain_plugins.{name}"\n', "run.py:2"),
        ("__init__.py", "from medtrain_plugins.standard.callbacks import Stop\n", "__init__.py:1"),
        ("__init__.py", f"{LAZY}if TYPE_CHECKING:\n    from medtrain_plugins.brain import Brain\n", "__init__.py:16"),
        ("__init__.py", 'HOMES = {"Brain": "medtrain_plugins.brain.plugin"}\n', "__init__.py:1"),
        ("plugins.py", 'DEFAULT_PLUGINS = ["medtrain_plugins.brain.plugin:Brain"]\n', "plugins.py:1"),
        ("plugins.py", 'OTHER = ["medtrain_plugins.standard.callbacks:Stop"]\n', "plugins.py:1"),
    ],
)
def test_the_core_names_no_plugin(file, text, place, plant):
    found = broken(core_names, plant({**CLEAN, f"core/medtrain/{file}": text}))
    assert len(found) == 1
    assert found[0].startswith(f"core/medtrain/{place}: core-names: the core ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from medtrain.trainer import Trainer\n", "medtrain.trainer is internal to the core; import Trainer from"),
        ("from medtrain.data.loader import Loader\n", "medtrain.data.loader is internal to the core"),
        ("from medtrain.data import loader\n", "loader is not in __all__ of medtrain.data"),
        ("from medtrain import data\n", "medtrain.data is a module: write `from medtrain.data import NAME`"),
        ("import medtrain.data\n", "write `from medtrain.data import NAME`"),
        ("from importlib import import_module\nimport_module('medtrain.data')\n", "write `from medtrain.data import"),
        ("def go():\n    from medtrain import trainer\n", "trainer is not in __all__ of medtrain"),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medtrain.run import Run\n", "medtrain.run is"),
    ],
)
def test_plugins_import_the_face_only(text, message, plant):
    found = broken(face, plant({**CLEAN, "plugins/medtrain_plugins/brain/plugin.py": text}))
    assert len(found) == 1
    assert found[0].startswith("plugins/medtrain_plugins/brain/plugin.py:")
    assert message in found[0]


def test_a_module_of_the_face_exists_and_lists_its_names(plant):
    settings = Settings(**{**vars(SETTINGS), "face": ["medtrain", "medtrain.data", "medtrain.errors", "medtrain.gone"]})
    assert [
        line.partition(";")[0] for line in broken(face, plant({**CLEAN, "core/medtrain/errors.py": ""}), settings)
    ] == [
        "core/medtrain/errors.py:1: face: medtrain.errors is on the face and has no __all__ written as a list of names",
        "pyproject.toml:1: face: medtrain.gone is on the face and does not exist",
    ]


def test_stand_ins_are_for_the_default_plugins_and_are_used(plant):
    settings = Settings(**{**vars(SETTINGS), "stand_ins": ["medtrain.trainer"]})
    text = "from medtrain.trainer import Trainer\n"
    assert broken(face, plant({**CLEAN, "plugins/medtrain_plugins/results/folds.py": text}), settings) == []
    other = plant(
        {**CLEAN, "plugins/medtrain_plugins/results/folds.py": "", "plugins/medtrain_plugins/sign/a.py": text}
    )
    internal, unused = broken(face, other, settings)
    assert internal.startswith("plugins/medtrain_plugins/sign/a.py:1: face: medtrain.trainer is internal")
    assert unused.endswith("neither of standard and results uses medtrain.trainer; take it off stand_ins")


@pytest.mark.parametrize(
    "back",
    [
        "from medtrain.run import Run\n",
        "from medtrain import run\n",
        "from .run import Run\n",
        "def go():\n    import medtrain.run\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from medtrain.run import Run\n",
        "import importlib\nimportlib.import_module('medtrain.run')\n",
    ],
)
def test_circles_are_found_however_they_are_written(back, plant):
    files = {"core/medtrain/run.py": "from medtrain.fit import Fit\n", "core/medtrain/fit.py": back}
    [found] = broken(circles, plant({**CLEAN, **files}))
    assert "circle: medtrain.fit -> medtrain.run -> medtrain.fit; move what" in found


def test_a_package_and_its_module_can_be_a_circle(plant):
    text = "from medtrain.data import Loader as Base\n\n\nclass Loader(Base): ...\n"
    [found] = broken(circles, plant({**CLEAN, "core/medtrain/data/loader.py": text}))
    assert found.startswith(
        "core/medtrain/data/__init__.py:1: circle: medtrain.data -> medtrain.data.loader -> medtrain"
    )


def test_the_shortest_circle_of_a_knot_is_named(plant):
    plugin = "plugins/medtrain_plugins/brain"
    files = {
        f"{plugin}/a.py": "from medtrain_plugins.brain import b\n",
        f"{plugin}/b.py": "from medtrain_plugins.brain import c\n",
        f"{plugin}/c.py": "from medtrain_plugins.brain import a, d\n",
        f"{plugin}/d.py": "from medtrain_plugins.brain import c\n",
    }
    [found] = broken(circles, plant({**CLEAN, **files}))
    assert "medtrain_plugins.brain.c -> medtrain_plugins.brain.d -> medtrain_plugins.brain.c (in a knot of 4" in found


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("core/medtrain/run.py", "import importlib\nimportlib.import_module('json')\n", "write an import statement"),
        ("core/medtrain/run.py", "__import__('json')\n", "write an import statement"),
        ("core/medtrain/run.py", "from importlib import import_module as f\nf('json')\n", "write an import statement"),
        (
            "core/medtrain/plugins.py",
            "import importlib as i\ndef f(x):\n    i.import_module(x)\n",
            "not written in this",
        ),
        ("core/medtrain/plugins.py", "import importlib as i\ni.import_module(f'a.{1}')\n", "not written in this"),
        (
            "core/medtrain/plugins.py",
            "import importlib as i\nA = {'a': 'b'}\ndef f(x):\n    x = x or A['a']\n    i.import_module(x)\n",
            "not written in this",
        ),
    ],
)
def test_import_module_only_where_listed_and_with_written_names(file, text, message, plant):
    [found] = broken(dynamic, plant({**CLEAN, file: text}))
    assert found.startswith(f"{file}:")
    assert message in found


def test_a_folder_holds_15_modules(plant):
    files = {f"plugins/medtrain_plugins/sign/data/m{number}.py": "" for number in range(15)}
    assert broken(sizes, plant({**CLEAN, **files, "plugins/medtrain_plugins/sign/data/deeper/more.py": ""})) == []
    [found] = broken(sizes, plant({"plugins/medtrain_plugins/sign/data/one_more.py": ""}))
    assert found.startswith("plugins/medtrain_plugins/sign/data/__init__.py:1: folder-size: 16 modules")


@pytest.mark.parametrize(
    ("file", "limit"),
    [("core/medtrain/run.py", 400), ("cli/medtrain_cli/run.py", 400), ("plugins/medtrain_plugins/sign/a.py", 500)],
)
def test_the_lines_of_a_file(file, limit, plant):
    assert broken(sizes, plant({**CLEAN, file: "\n" * limit})) == []
    [found] = broken(sizes, plant({file: "\n" * (limit + 1)}))
    assert found.startswith(f"{file}:{limit + 1}: file-size: {limit + 1} lines; at most {limit}")


def test_the_size_of_the_core_is_code_without_testing(plant):
    text = '"""Module."""\n\n# Comment.\nclass A:\n    """Two\n\n    lines."""\n\n    b = 1\n    """Of b."""\n'
    text += '    c = """x\n\ny"""\n'
    folder = plant(
        {"core/medtrain/run.py": text, "core/medtrain/testing/toy.py": "x = 1\n", "cli/medtrain_cli/a.py": "x\n"}
    )
    assert sizes.core_code_lines(tree.read(folder)) == 4  # class, b, and the two lines of c with text
    settings = Settings(**{**vars(SETTINGS), "core_code_lines": 3})
    [found] = broken(sizes, folder, settings)
    assert found.startswith(
        "core/medtrain/__init__.py:1: core-size: the core has 4 code lines without testing/; at most 3"
    )


def test_a_function_of_the_core_has_60_lines(plant):
    text = "import functools\n\n\nclass Fit:\n    @functools.cache\n    def run(self):\n" + "        self.x = 1\n" * 59
    assert broken(shapes, plant({**CLEAN, "core/medtrain/training/fit.py": text})) == []
    plant({"plugins/medtrain_plugins/sign/a.py": text + "        return 1\n"})
    [found] = broken(shapes, plant({"core/medtrain/training/fit.py": text + "        return 1\n"}))
    assert found.startswith("core/medtrain/training/fit.py:6: function-size: run has 61 lines; at most 60")


def methods(count: int, prefix: str = "m") -> str:
    return "".join(f"    def {prefix}{number}(self): ...\n" for number in range(count))


def test_a_class_of_the_core_has_20_methods_with_those_of_its_bases(plant):
    files = {
        "core/medtrain/rooms/__init__.py": "from medtrain.rooms.base import Base as Room\n",
        "core/medtrain/rooms/base.py": f"class Base:\n    def __init__(self): ...\n{methods(10)}",
        "core/medtrain/big.py": "from medtrain import rooms\nfrom medtrain.rooms import Room\n\n\n"
        f"class Fits(Room):\n    def m0(self): ...\n{methods(9, 'n')}\n\n"
        f"class Big(rooms.Room):\n    @property\n    def p(self): ...\n{methods(9, 'n')}",
    }
    [found] = broken(shapes, plant({**CLEAN, **files}))
    assert found.startswith("core/medtrain/big.py:18: class-size: Big has 21 methods")


def test_public_methods_of_the_trainer_do_not_count(plant):
    assert broken(shapes, plant({**CLEAN, "core/medtrain/trainer.py": f"class Trainer:\n{methods(25)}"})) == []
    [found] = broken(shapes, plant({"core/medtrain/trainer.py": f"class Trainer:\n{methods(21, '_m')}"}))
    assert "Trainer has 21 methods" in found


def test_the_command_prints_what_is_broken_and_fails(plant):
    table = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    folder = plant({"pyproject.toml": table, "core/medtrain/run.py": "import medtrain_cli\n"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools")}
    command = [sys.executable, "-m", "house"]
    strict = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert "core/medtrain/run.py:1: core-names: the core imports medtrain_cli; " in strict.stdout
    assert strict.returncode == 1
    report = subprocess.run([*command, "--report"], cwd=folder, env=environment, text=True, capture_output=True)
    assert (report.returncode, report.stdout) == (0, strict.stdout)


def test_the_projects_own_table_is_complete():
    assert read(ROOT).core_code_lines > 0
