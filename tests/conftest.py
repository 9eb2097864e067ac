"""What every test may use: the toy plugin by name, the command line as a subprocess, a cache of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TOY = Path(__file__).parent / "toyplugin"
# oneDNN's AMX kernels for bfloat16 do not repeat bit by bit (torch 2.14 on processors that have AMX), and tests compare
# bits. Read when torch is imported, so it holds for subprocesses too.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")


def pytest_configure() -> None:
    if str(TOY) not in sys.path:
        sys.path.insert(0, str(TOY))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


class CommandLine:
    """`medtrain` in a subprocess, in a folder of its own, with further folders on its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = [str(TOY)]
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *arguments: Any, python: tuple[str, ...] = ("-m", "medtrain"), **env: str) -> Any:
        """A running process; it is killed with its children when the test ends."""
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **env}
        variables["PYTHONPATH"] = os.pathsep.join([*self.paths, os.environ.get("PYTHONPATH", "")])
        process = subprocess.Popen(
            [sys.executable, *python, *map(str, arguments)],
            cwd=self.folder,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def __call__(
        self, *arguments: Any, code: int = 0, timeout: float = 120, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end and require the exit code."""
        process = self.start(*arguments, **env)
        output, errors = process.communicate(timeout=timeout)
        assert process.returncode == code, f"exit code {process.returncode}, not {code}\n{output}\n{errors}"
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="session")
def command_line_in() -> Iterator[Callable[[Path], CommandLine]]:
    """`command_line_in(folder)` is the real command line there, with the toy plugin installed."""
    made: list[CommandLine] = []

    def make(folder: Path) -> CommandLine:
        made.append(CommandLine(folder))
        return made[-1]

    yield make
    for command_line in made:
        command_line.close()


@pytest.fixture
def medtrain(tmp_path: Path) -> Iterator[CommandLine]:
    """`medtrain("runs", "list", code=2)` runs the real command line in the test's own folder."""
    command_line = CommandLine(tmp_path)
    yield command_line
    command_line.close()


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("run", "--epochs", 0, code=2)` is the message a mistake gets, which is required to be one.

    The command line runs in this process: many mistakes, and torch takes seconds to import for each.
    """

    def run(*arguments: Any, code: int) -> str:
        from medtrain_cli.main import main

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["medtrain", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        errors = capfd.readouterr().err
        assert ended.value.code == code, errors
        assert "Traceback" not in errors
        return errors

    return run


@pytest.fixture
def wait_for() -> Callable[[Callable[[], Any]], None]:
    """Wait until something holds, at most a minute."""

    def wait(condition: Callable[[], Any]) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, "it did not happen within a minute"
            time.sleep(0.02)

    return wait
