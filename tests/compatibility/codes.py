"""Two codes side by side: that of the previous release, and the one under test, each in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# The last commit before the rooms of core, cli and plugins were rebuilt: version 0.1.0, run-directory schema 1.
PREVIOUS = "3681393d564160531e9d32f49cff5972dffc1e1a"


class Unavailable(Exception):
    """Why the previous code cannot be had here."""


@dataclass
class Done:
    """What a command line came to."""

    arguments: list[str]
    code: int
    stdout: str
    stderr: str

    def json(self) -> Any:
        """All of standard output, or its last line."""
        text = self.stdout.strip()
        assert text, f"{self.arguments}: no output, exit code {self.code}\n{self.stderr}"
        with suppress(json.JSONDecodeError):
            return json.loads(text)
        return json.loads(text.splitlines()[-1])


@dataclass
class Code:
    """One of the two: `code("runs", "list", cwd=folder)` is its command line.

    paths: come first on PYTHONPATH. cache: folder of demos and probes, not shared with the other code.
    """

    name: str
    root: Path
    paths: Sequence[Path]
    cache: Path
    folders: list[Path] = field(default_factory=list)

    def environment(self, **more: str) -> dict[str, str]:
        """For its processes; `folders` are further places of packages."""
        paths = [*map(str, [*self.folders, *self.paths]), os.environ.get("PYTHONPATH", "")]
        fixed = {"OMP_NUM_THREADS": "1", "MEDTRAIN_CACHE": str(self.cache), "COLUMNS": "100"}
        return {**os.environ, **fixed, "PYTHONPATH": os.pathsep.join(paths), **more}

    def python(
        self, *arguments: Any, cwd: Path, code: int | None = 0, timeout: float = 400, text: str = "", **env: str
    ) -> Done:
        """A Python process; `code` is the exit code it must end with, None for any."""
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=cwd, env=self.environment(**env), input=text, capture_output=True, text=True, timeout=timeout
        )
        told = f"{self.name}: {' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert code is None or done.returncode == code, told
        return Done(command[1:], done.returncode, done.stdout, done.stderr)

    def __call__(self, *arguments: Any, cwd: Path, code: int | None = 0, timeout: float = 400, **env: str) -> Done:
        return self.python("-m", "medtrain", *arguments, cwd=cwd, code=code, timeout=timeout, **env)

    def together(self, commands: Sequence[Sequence[Any]], cwd: Path, **env: str) -> list[Done]:
        """Several command lines in one process (see several.py)."""
        asked = json.dumps([[str(part) for part in command] for command in commands])
        result = self.python(HERE / "several.py", "commands", cwd=cwd, text=asked, **env)
        return [Done(**one) for one in result.json()]

    def help_texts(self, cwd: Path) -> dict[str, str]:
        """`--help` of every command and group of commands, by its words."""
        texts: dict[str, str] = self.python(HERE / "several.py", "help", cwd=cwd).json()
        return texts


def git(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    """git in this repository, without its hooks."""
    command = ["git", "-c", "core.hooksPath=/dev/null", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check)


def check_out(folder: Path) -> None:
    """The previous code's working tree in a new folder. Raises Unavailable."""
    try:
        inside = git("rev-parse", "--show-toplevel", check=False)
    except OSError as error:
        raise Unavailable(f"git cannot be run: {error}") from None
    if inside.returncode or Path(inside.stdout.strip()).resolve() != ROOT.resolve():
        raise Unavailable(f"{ROOT} is no git checkout")
    if git("cat-file", "-e", f"{PREVIOUS}^{{commit}}", check=False).returncode:
        raise Unavailable(f"the commit {PREVIOUS} is not in this clone (shallow?); `git fetch --unshallow` gets it")
    added = git("worktree", "add", "--quiet", "--detach", folder, PREVIOUS, check=False)
    if added.returncode:
        raise Unavailable(f"git worktree add: {added.stderr.strip()}")


def remove(folder: Path) -> None:
    """Remove that working tree, and git's note of it."""
    with suppress(OSError):
        git("worktree", "remove", "--force", folder, check=False)


def write_distribution(folder: Path, pyproject: Path) -> Path:
    """Metadata of a package as an installation writes them, so that its entry points are found without one.

    importlib.metadata takes the first distribution of a name on the path: with `folder` first, it is this one.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    needs = "".join(f"Requires-Dist: {need}\n" for need in project.get("dependencies", []))
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head + needs, encoding="utf-8")
    groups = {"console_scripts": project.get("scripts", {}), **project.get("entry-points", {})}
    lines = []
    for group, points in groups.items():
        lines += [f"[{group}]", *[f"{name} = {target}" for name, target in points.items()], ""]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder
