"""Lifecycle hooks of a run in training, called so that an exception names the plugin and the hook."""

from __future__ import annotations

from collections.abc import Callable

from medtrain.errors import HookError, MedtrainError
from medtrain.plugins import Plugins
from medtrain.run import Run


class Hooks:
    """The lifecycle hooks of the run's plugins."""

    def __init__(self, plugins: Plugins, run: Run) -> None:
        self.plugins, self.run = plugins, run

    def of(self, name: str) -> list[Callable[[Run], None]]:
        """The implementations of a hook."""
        return [_guarded(name, hook) for hook in self.plugins.lifecycle(name)]

    def call(self, name: str) -> None:
        """Run the implementations of a hook; the first exception ends it."""
        for hook in self.of(name):
            hook(self.run)

    def deferred(self, name: str) -> HookError | None:
        """Run a hook and return its exception, so that the epoch can be saved before it is raised."""
        try:
            self.call(name)
        except HookError as error:
            return error
        return None

    def on_exception(self, log: Callable[[str], None]) -> None:
        """Run `on_exception` of every plugin. A failure there is logged only: the first error is the one to raise."""
        for hook in self.plugins.lifecycle("on_exception"):
            try:
                hook(self.run)
            except Exception as error:
                log(f"on_exception failed: {type(error).__name__}: {error}")


def _guarded(name: str, hook: Callable[[Run], None]) -> Callable[[Run], None]:
    """The hook, its exceptions naming plugin and hook; what medtrain itself raises passes."""

    def call(run: Run) -> None:
        try:
            hook(run)
        except MedtrainError:
            raise
        except Exception as error:
            where = getattr(hook, "__module__", type(hook).__name__)
            raise HookError(f"{where}: hook {name} failed: {type(error).__name__}: {error}") from error

    return call
