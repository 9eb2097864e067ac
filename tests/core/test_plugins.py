"""Finding, loading and isolating plugins: a broken one is a row with its error and stops nobody else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from medtrain import hookimpl, plugins
from medtrain.catalog import find_preset, presets
from medtrain.errors import ConfigError, PluginError
from medtrain.plugins import Plugins, check
from medtrain_cli import catalog

GOOD = '''"""A fine plugin.

More about it.
"""
from medtrain import hookimpl

@hookimpl
def build_scheduler(config, optimizer, plan):
    """Nothing."""
'''
MODULES: dict[str, str | bytes] = {
    "fine": GOOD,
    "raises": '"""Cannot be imported."""\nraise RuntimeError("no licence\\nfound")\n',
    "leaves": '"""Ends the process when it is imported."""\nimport sys\nsys.exit(3)\n',
    "misspelt": "from medtrain import hookimpl\n@hookimpl\ndef build_modell(config): ...\n",
    "signature": "from medtrain import hookimpl\n@hookimpl\ndef build_model(config, gpu): ...\n",
    "garbled": b"\xff\xfe\x00 not python",
    "zeros": b"x = 1\x00\n",
    "syntax": "def (:\n",
    "empty": '"""No hooks in here."""\n',
    "first_twin": GOOD,
    "second_twin": GOOD,
}
FAULTS = {
    "raises": "RuntimeError: no licence found",
    "leaves": "SystemExit: 3",
    "misspelt": "there is no hook 'build_modell' (did you mean 'build_model'?)",
    "signature": "gpu",
    "garbled": "SyntaxError",
    "zeros": "null bytes",
    "syntax": "SyntaxError",
    "empty": "implements no hook",
    "absent": "No module named 'fake_absent'",
    "no_value": "is not an import path",
}


def distribution(folder: Path, name: str, points: dict[str, str]) -> None:
    """What `pip install` leaves of a distribution: its metadata and entry points."""
    info = folder / f"{name}-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = [f"{point} = {target}" for point, target in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[medtrain]", *lines]) + "\n")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder with one fine plugin, two of one name, and every way of being broken."""
    folder = tmp_path / "site"
    folder.mkdir()
    for name, source in MODULES.items():
        data = source if isinstance(source, bytes) else source.encode()
        (folder / f"fake_{name}.py").write_bytes(data)
    singles = [name for name in MODULES if not name.endswith("twin")]
    distribution(folder, "zoo", {name: f"fake_{name}" for name in [*singles, "absent"]} | {"no_value": "a b!c"})
    distribution(folder, "twin_one", {"twin": "fake_first_twin"})
    distribution(folder, "twin_two", {"twin": "fake_second_twin"})
    return folder


@pytest.fixture
def imported_zoo(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(zoo)
    return zoo


def test_every_fault_is_a_row_and_breaks_no_other_command(zoo: Path, medtrain: Any) -> None:
    medtrain.paths.append(str(zoo))
    before = {row["name"]: row for row in json.loads(medtrain("plugins", "list", "--json").stdout)}
    assert before["fine"]["status"] == "not probed"
    assert before["fine"]["summary"] == "A fine plugin."
    assert before["fine"]["kind"] == "scheduler"
    assert (before["fine"]["distribution"], before["fine"]["version"]) == ("zoo", "1.2")
    assert before["absent"]["status"] == "broken"
    rows = json.loads(medtrain("plugins", "list", "--probe", "--json").stdout)
    probed = {row["name"]: row for row in rows}
    assert probed["fine"]["status"] == probed["toy_plugin"]["status"] == "ok"
    for name, fault in FAULTS.items():
        assert probed[name]["status"] == "broken", name
        assert fault in probed[name]["error"], name
        assert "\n" not in probed[name]["error"]
    twins = [row for row in rows if row["name"] == "twin"]
    assert [row["status"] for row in twins] == ["conflict", "conflict"]
    assert "twin_two (fake_second_twin)" in twins[0]["error"]
    # The probe is remembered, and shown without importing again.
    plain = medtrain("plugins", "list").stdout
    assert "no licence found" in plain
    assert "fine" in medtrain("plugins", "explain", "fine").stdout
    assert medtrain("config", "check", "--plugin", "light_plugin").stdout == "ok: light_plugin\n"
    assert "no licence found" in medtrain("config", "check", "--plugin", "raises", code=2).stderr


@pytest.mark.parametrize("name", FAULTS)
def test_choosing_a_broken_plugin_is_one_clear_error(name: str, imported_zoo: Path) -> None:
    with pytest.raises(PluginError, match=f"'{name}'"):
        plugins.load(name)


def test_a_name_that_two_distributions_have(imported_zoo: Path) -> None:
    with pytest.raises(PluginError, match=r"more than one distribution: twin_.*, twin_.*; uninstall one"):
        plugins.load("twin")


def test_an_unknown_name_suggests_the_nearest(imported_zoo: Path) -> None:
    with pytest.raises(PluginError, match=r"there is no plugin 'fien' \(did you mean 'fine'\?\)"):
        plugins.load("fien")


def test_discovery_imports_nothing(imported_zoo: Path) -> None:
    for name in MODULES:
        sys.modules.pop(f"fake_{name}", None)
    catalog.discover()
    assert not [name for name in sys.modules if name.startswith("fake_")]


def test_import_paths_are_accepted(imported_zoo: Path) -> None:
    (imported_zoo / "with_class.py").write_text(
        "from medtrain import hookimpl\nclass Net:\n    '''A net.'''\n    @hookimpl\n    def build_model(self): ...\n"
    )
    loaded = plugins.load("with_class:Net")
    assert loaded.hooks.keys() == {"build_model"}
    assert loaded.options() is None


def test_a_cache_that_cannot_be_written_does_no_harm(
    imported_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDTRAIN_CACHE", str(tmp_path / "file"))
    statuses = {row.name: row.status for row in catalog.probe()}
    assert statuses["fine"] == "ok"
    assert {row.name: row.status for row in catalog.discover()}["fine"] == "not probed"


def test_a_plugin_is_named_once() -> None:
    with pytest.raises(PluginError, match="'toy_plugin' is named twice"):
        Plugins.of(["toy_plugin", "toy_plugin"])


def test_objects_are_plugins_too() -> None:
    class Mine:
        @hookimpl
        def on_run_start(self, run: Any) -> None: ...

    assert Plugins.of([Mine(), check("other", Mine())]).names == ["Mine", "other"]


def test_presets_lie_beside_the_module(imported_zoo: Path) -> None:
    package = imported_zoo / "boxed"
    (package / "presets").mkdir(parents=True)
    (package / "__init__.py").write_text(GOOD)
    (package / "presets" / "paper.toml").write_text("[run]\nseed = 1\n")
    distribution(imported_zoo, "boxed", {"boxed": "boxed"})
    assert set(presets("boxed")) == {"paper"}
    assert find_preset(["fine", "boxed"], "paper") == [package / "presets" / "paper.toml"]
    with pytest.raises(ConfigError, match=r"no chosen plugin has it \(did you mean 'paper'\?\); known: paper"):
        find_preset(["boxed"], "papre")
    with pytest.raises(ConfigError, match="known: none"):
        find_preset(["fine"], "demo")


def test_docstrings_are_read_from_the_source(imported_zoo: Path) -> None:
    (imported_zoo / "said.py").write_text('def speak():\n    """Says something."""\n')
    point: Callable[[str], Any] = lambda target: EntryPoint("x", target, "medtrain.commands")  # noqa: E731
    assert catalog.docstring(point("said:speak")) == "Says something."
    assert catalog.docstring(point("said:silent")) == ""
    assert catalog.docstring(point("fake_fine")) == "A fine plugin."
