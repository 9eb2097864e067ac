"""The command line says of itself what the previous release's said."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from codes import Code

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(900), pytest.mark.xdist_group("help")]

# Where the wording is meant to differ: (command, old, new); "" is `medtrain` itself. The old text is replaced by the
# new one in what the previous code prints, and has to be there.
WORDING: list[tuple[str, str, str]] = []


def test_help_of_every_command(previous_help: dict[str, str], current: Code, tmp_path: Path) -> None:
    there, here = dict(previous_help), current.help_texts(tmp_path)
    assert len(there) > 50 and all(text.startswith("Usage: medtrain") for text in there.values())
    for command, old, new in WORDING:
        assert old in there[command], f"WORDING: `medtrain {command} --help` of the previous code has no {old!r}"
        there[command] = there[command].replace(old, new)
    assert not sorted({*there} - {*here}), "commands are gone"
    changed = []
    for command, text in there.items():
        lines = text.splitlines(), here[command].splitlines()
        changed += difflib.unified_diff(*lines, f"before/{command}", f"now/{command}", lineterm="", n=1)
    assert not changed, "\n".join(changed)
