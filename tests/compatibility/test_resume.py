"""Runs that the previous release's code left in the middle end under this code as they end under that one."""

from __future__ import annotations

import pytest
from codes import Code
from previous_runs import KINDS, Runs, differences, each, outcome

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(900)]


@pytest.mark.parametrize("name", each(list(KINDS)))
def test_resumed_it_is_the_run_that_the_previous_code_makes_of_it(
    name: str, runs: Runs, previous: Code, current: Code
) -> None:
    left = outcome(runs.made(name) / "run")
    there = outcome(runs.resumed(name, previous) / "run")
    here = outcome(runs.resumed(name, current) / "run")
    history = f"split-{KINDS[name].split}/history.jsonl"
    assert left.get(history) != there[history], "nothing was left to do: the test would prove nothing"
    assert not differences(there, here)


@pytest.mark.parametrize("name", each([name for name, kind in KINDS.items() if kind.again]))
def test_the_same_call_again_goes_on(name: str, runs: Runs, previous: Code, current: Code) -> None:
    there = outcome(runs.called_again(name, previous) / "run")
    here = outcome(runs.called_again(name, current) / "run")
    assert not differences(there, here)
