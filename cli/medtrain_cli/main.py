"""The command tree, loaded leaf by leaf, and what an error looks like to a person."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import click
from medtrain.errors import MedtrainError, nearest

from medtrain_cli import catalog

# Every built-in command: dotted name -> (where it is, one line of help). Plugins add theirs by entry point.
COMMANDS = {
    "run": ("medtrain_cli.run:run", "Assemble plugins into a training run."),
    "resume": ("medtrain_cli.run:resume", "Go on with a run from one of its checkpoints."),
    "plugins.list": ("medtrain_cli.plugins:list_plugins", "Show every installed plugin."),
    "plugins.info": ("medtrain_cli.plugins:info", "Show a plugin's options, hooks and presets."),
    "plugins.explain": ("medtrain_cli.plugins:explain", "Show who answers which hook when plugins are combined."),
    "plugins.new": ("medtrain_cli.scaffold:new", "Start a plugin package of your own."),
    "plugins.check": ("medtrain_cli.plugins:check", "Check a plugin against medtrain's conformance kit."),
    "config.show": ("medtrain_cli.config:show", "Print the configuration a run would have."),
    "config.check": ("medtrain_cli.config:check", "Check configuration files."),
    "config.schema": ("medtrain_cli.config:schema", "Print the JSON schema of the configuration."),
    "runs.list": ("medtrain_cli.runs:list_runs", "List run directories."),
    "runs.show": ("medtrain_cli.runs:show", "Show one run: status, history, checkpoints."),
    "runs.pause": ("medtrain_cli.runs:pause", "Have a training wait at its next step."),
    "runs.continue": ("medtrain_cli.runs:go_on", "Have a paused training go on."),
    "doctor": ("medtrain_cli.doctor:doctor", "Show what this machine has and whether it will do."),
}
GROUPS = {
    "": "Train medical-imaging models from plugins.",
    "plugins": "Find, inspect, check and start plugins.",
    "config": "Show and check configurations.",
    "runs": "Look at run directories.",
    "weights": "Convert, export and inspect weights.",
    "data": "Make and inspect data.",
    "data.check": "Check data before they are used.",
    "data.prepare": "Make data ready for training.",
    "data.show": "Look at data.",
    "data.synth": "Write synthetic data in a real layout.",
    "detect": "Find lesions in scans.",
    "import": "Take over what other programs left.",
    "saliency": "Show what a model looks at.",
    "benchmark": "Train everything that solves one task, and compare it.",
    "calibrate": "Calibrate trained models.",
}


class Tree(click.Group):
    """A group whose members are found by dotted name and imported when called."""

    def __init__(self, prefix: str = "", **settings: Any) -> None:
        help_text = GROUPS.get(prefix, f"Commands under {prefix.replace('.', ' ')}.")
        super().__init__(name=prefix.rpartition(".")[2] or "medtrain", help=help_text, **settings)
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        start = f"{self.prefix}." if self.prefix else ""
        names = [*COMMANDS, *catalog.commands()]
        return sorted({name[len(start) :].split(".")[0] for name in names if name.startswith(start)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        dotted = f"{self.prefix}.{cmd_name}" if self.prefix else cmd_name
        if dotted in COMMANDS:
            module, _, attribute = COMMANDS[dotted][0].partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            return command
        if cmd_name not in self.list_commands(ctx):
            return None
        return self._of_plugin(dotted)

    def _of_plugin(self, dotted: str) -> click.Command:
        point = catalog.commands().get(dotted)
        if point is None:
            return Tree(dotted)
        try:
            loaded: click.Command = point.load()
        except Exception as error:  # a stranger's module may raise anything
            raise click.ClickException(f"the command {dotted!r} ({point.value}) cannot be imported: {error}") from error
        return loaded

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            ctx.fail(f"there is no command {name!r}{nearest(name, self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows, of_plugins = [], catalog.commands()
        for name in self.list_commands(ctx):
            dotted = f"{self.prefix}.{name}" if self.prefix else name
            if dotted in COMMANDS:
                rows.append((name, COMMANDS[dotted][1]))
            elif (point := of_plugins.get(dotted)) is not None:
                rows.append((name, catalog.docstring(point)))
            else:
                rows.append((name, GROUPS.get(dotted, f"Commands under {dotted.replace('.', ' ')}.")))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        from medtrain import __version__

        click.echo(f"medtrain {__version__}")
        ctx.exit()


cli = Tree(
    params=[
        click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version),
        click.Option(["--debug"], is_flag=True, expose_value=False, help="Show tracebacks (allowed anywhere)."),
    ]
)


def main(arguments: list[str] | None = None) -> None:
    """The console script: run a command, turn errors into one message and the right exit code."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "torch" in sys.modules:
            from medtrain_cli.processes import leave

            leave(end.code if isinstance(end.code, int) else 1)
        raise


def _run(arguments: list[str]) -> None:
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    _let_plugins_speak(to_stderr="--json" in arguments)
    try:
        result = cli.main(arguments, prog_name="medtrain", standalone_mode=False)
        sys.exit(result if isinstance(result, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _say("Interrupted.", "--json" in arguments)
        sys.exit(130)
    except MedtrainError as error:
        if debug:
            raise
        _say(f"Error: {error}", "--json" in arguments, error.exit_code)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        text = f"Error: {type(error).__name__}: {error}\nThis was not foreseen; --debug shows where it happened."
        _say(text, "--json" in arguments)
        sys.exit(1)


def _let_plugins_speak(to_stderr: bool) -> None:
    """Messages of the logger `medtrain` as plain lines, from the main process."""
    import logging

    handler = logging.StreamHandler(sys.stderr if to_stderr else sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("medtrain")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)


def _say(message: str, as_json: bool, exit_code: int = 1) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    click.echo(message, err=True)
    if as_json:
        import json

        status = {130: "interrupted", 75: "preempted", 4: "diverged"}.get(exit_code, "failed")
        click.echo(json.dumps({"status": status, "error": message, "exit_code": exit_code}))


if __name__ == "__main__":
    main()
