"""Errors a user can act on: what is wrong, where, and what to do. The CLI prints them without a traceback."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CheckpointError", "ConfigError", "DataError", "DivergedError", "ExportError", "HookError", "Interrupted",
    "MedtrainError", "PluginError", "Preempted", "UsageError", "first_lines", "nearest",
]  # fmt: skip


class MedtrainError(Exception):
    """Base of every error meant for people; `exit_code` is what the CLI exits with."""

    exit_code = 1


class UsageError(MedtrainError):
    """A command, path or argument that cannot be used."""

    exit_code = 2


class ConfigError(MedtrainError):
    """A configuration key or value that cannot be used; the message names file, line and key."""

    exit_code = 2


class PluginError(MedtrainError):
    """A plugin that cannot be found, imported or registered."""

    exit_code = 2


class HookError(MedtrainError):
    """A plugin's hook raised; the message names plugin, hook and error."""


class DataError(MedtrainError):
    """Data that would give wrong numbers: the message names file and row, or the sample."""

    exit_code = 3


class CheckpointError(MedtrainError):
    """A checkpoint that is missing, damaged or does not belong to this run."""

    exit_code = 3


class ExportError(MedtrainError):
    """An exported model that is not as good as the trained one."""


class DivergedError(MedtrainError):
    """The training loss is no longer finite."""

    exit_code = 4


class Preempted(MedtrainError):
    """SIGTERM or SIGUSR1 arrived; a checkpoint was written."""

    exit_code = 75


class Interrupted(MedtrainError):
    """Ctrl-C arrived; a checkpoint was written."""

    exit_code = 130


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint such as ` (did you mean 'epochs'?)`, or nothing when no known word is close."""
    import difflib

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def first_lines(problems: list[str], limit: int = 8) -> str:
    """Problems as an indented list, the first `limit` of them, with the count of the rest."""
    shown = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  ... and {len(problems) - limit} more")
    return "\n".join(shown)
