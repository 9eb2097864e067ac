"""Every test that the page of features names is there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "features.md"


def test_every_named_test_exists() -> None:
    named = re.findall(r"`([a-z0-9_/]+\.py)(?:::(test_\w+))?`", PAGE.read_text())
    assert len(named) > 60
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (TESTS / file).is_file() or (test and f"def {test}(" not in (TESTS / file).read_text())
    ]
    assert missing == []


def test_every_row_has_its_proof_or_says_that_it_has_none() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ") and "---" not in line][1:]
    bare = [row for row in rows if "::" not in row and "not tested" not in row and "trainer.md" not in row]
    assert bare == []
