"""Whether tests notice that an option is not read: reading it gives its default, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

TESTS = Path(__file__).parent
Key = tuple[str, type[BaseModel], str]


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[Key]:
    """Every option below a section: its dotted name, the class that has it, its name there."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys_of(kind, f"{prefix}{name}.")
        else:
            yield prefix + name, section, name


class FirstFailure:
    """Writes the name of the first test that fails to a file descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            os.write(self.descriptor, report.nodeid.encode())


def failure_without(owner: type[BaseModel], name: str, tests: list[str]) -> str:
    """The first of `tests` that fails when `owner` has its default for `name`, whatever it was given; "" if none does.

    tests: paths and names as for pytest.
    """
    reading, writing = os.pipe()
    process = os.fork()  # torch and MONAI are imported once for all options
    if process == 0:
        code = 1
        try:
            # Refused in the fork of a process that used a GPU or torch.compile: then every test would fail.
            torch.ones(1, requires_grad=True).backward()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            default = owner.model_fields[name].get_default(call_default_factory=True)
            read, dump = owner.__getattribute__, owner.model_dump
            owner.__getattribute__ = lambda self, key: default if key == name else read(self, key)  # type: ignore
            owner.model_dump = lambda self, **how: {  # type: ignore
                key: default if key == name else value for key, value in dump(self, **how).items()
            }
            options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not acceptance", f"--rootdir={TESTS.parent}"]
            pytest.main([*options, *tests], plugins=[FirstFailure(writing)])
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as lines:
        failed = lines.read()
    _, status = os.waitpid(process, 0)
    assert status == 0, "no test could be run in a fork of this process; run this test in a pytest of its own"
    return failed
