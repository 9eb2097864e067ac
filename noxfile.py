"""Every check has one name. Sessions share one environment (a full install is several GB)."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

import nox

ROOT = Path(__file__).parent
SHARED = ROOT / ".nox" / "shared"
nox.options.sessions = ["tests", "lint", "types", "docs"]
nox.options.default_venv_backend = "none"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SHORT = ["-n", "2", "--dist", "worksteal", "-m", "not demos and not acceptance and not chaos and not compatibility"]


def prepare(session: nox.Session) -> str:
    """The shared environment with medtrain and its development tools installed; returns its Python.

    Made on first use, on top of the packages of whatever environment nox runs in, so that an installed torch is not
    installed twice.
    """
    python = SHARED / "bin" / "python"
    stamp = SHARED / "pyproject.toml"
    wanted = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if not python.exists():
        session.run(sys.executable, "-m", "venv", str(SHARED), external=True)
        folder = next((SHARED / "lib").glob("python*")) / "site-packages"
        (folder / "below.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        install = ["install", "--quiet", "--no-compile", "--editable", ".[dev]"]  # a tenth of the modules is imported
        session.run(str(python), "-m", "pip", *install, external=True)
        stamp.write_text(wanted, encoding="utf-8")
    session.env["PATH"] = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    return str(python)


@nox.session
def tests(session: nox.Session) -> None:
    """The short suite: all but demos, acceptance, chaos and compatibility."""
    python = prepare(session)
    session.run(python, "-m", "pytest", *(session.posargs or SHORT), env=ONE_THREAD, external=True)


@nox.session
def coverage(session: nox.Session) -> None:
    """The same tests with the coverage of the core; tracing doubles what they take."""
    python = prepare(session)
    options = [*SHORT, "--cov=medtrain", "--cov-report=term:skip-covered", "--cov-fail-under=90"]
    session.run(python, "-m", "pytest", *options, env=ONE_THREAD, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, who may import whom, and how large a piece may be."""
    python = prepare(session)
    session.run(python, "-m", "ruff", "check", ".", external=True)
    session.run(python, "-m", "ruff", "format", "--check", ".", external=True)
    session.run(python, "-m", "house", env={"PYTHONPATH": "tools"}, external=True)
    contracts = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    session.run(python, "-c", contracts, external=True)


@nox.session
def types(session: nox.Session) -> None:
    """mypy: strict on the core and the tools, annotated code everywhere else."""
    python = prepare(session)
    folders = ["core/medtrain", "cli/medtrain_cli", "plugins/medtrain_plugins", "tools/house"]
    session.run(python, "-m", "mypy", *folders, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, every link and page checked."""
    python = prepare(session)
    session.run(python, "-m", "mkdocs", "build", "--strict", "--quiet", external=True)


@nox.session
def demos(session: nox.Session) -> None:
    """Trains the embedded demos on several seeds, with controls that must find nothing; about half an hour."""
    python = prepare(session)
    session.run(python, "-m", "pytest", "-m", "demos", "-s", *session.posargs, external=True)


@nox.session
def acceptance(session: nox.Session) -> None:
    """Long end-to-end lines: real images, two processes against one."""
    python = prepare(session)
    session.run(python, "-m", "pytest", "-m", "acceptance", "-s", *session.posargs, external=True)


@nox.session
def chaos(session: nox.Session) -> None:
    """Runs killed at random moments and resumed."""
    python = prepare(session)
    session.run(python, "-m", "pytest", "-m", "chaos", "-s", *session.posargs, env=ONE_THREAD, external=True)


@nox.session
def compatibility(session: nox.Session) -> None:
    """Runs, plugins and command lines of the previous release, under this code; a quarter of an hour."""
    python = prepare(session)
    options = ["-n", "2", "--dist", "loadgroup", "-m", "compatibility"]
    session.run(python, "-m", "pytest", *options, *session.posargs, env=ONE_THREAD, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """What a step costs beyond its arithmetic; the risk models and the loader of signs against plain ways."""
    python = prepare(session)
    session.run(python, "benchmarks/overhead.py", "--rounds", "5", external=True)
    session.run(python, "benchmarks/overhead.py", "--flat", "50000", external=True)
    session.run(python, "benchmarks/risk_models.py", external=True)
    session.run(python, "benchmarks/karsl_loader.py", external=True)
