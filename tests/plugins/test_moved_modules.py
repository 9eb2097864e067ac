"""Modules of plugins that moved are found by the paths in older run directories."""

from __future__ import annotations

from importlib import import_module

import pytest

MOVED = {
    old: new
    for plugin in ("brain", "mammography", "nodule", "sign")
    for old, new in import_module(f"medtrain_plugins.{plugin}").MOVED.items()
}


@pytest.mark.parametrize("new", sorted(set(MOVED.values())))
def test_a_moved_module_is_there(new: str) -> None:
    module, _, name = new.partition(":")
    found = import_module(module)
    assert not name or hasattr(found, name)
