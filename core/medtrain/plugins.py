"""Load plugins in isolation, put them in order, ask them, and explain who answers what."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from medtrain import hookspecs
from medtrain.errors import PluginError, nearest

GROUP = "medtrain"
# What medtrain does when no chosen plugin answers: plugins like any other, with the lowest priority, always there.
DEFAULT_PLUGINS = {
    "splits": "medtrain_plugins.standard:Splits",
    "transfer": "medtrain_plugins.standard:Transfer",
    "optimizers": "medtrain_plugins.standard:Optimizers",
    "schedules": "medtrain_plugins.standard:Schedules",
    "early_stopping": "medtrain_plugins.standard:EarlyStopping",
    "results": "medtrain_plugins.results:Results",
}


@dataclass
class LoadedPlugin:
    """A plugin that was imported and passed the check of its hooks.

    plain: its methods that are called like lifecycle hooks are hooks without a mark. default: one of DEFAULT_PLUGINS.
    """

    name: str
    plugin: Any
    hooks: dict[str, Callable[..., Any]] = field(default_factory=dict)
    plain: bool = False
    default: bool = False

    def options(self) -> Any:
        """Its options model, or None."""
        hook = self.hooks.get("plugin_options")
        return hook() if hook else None


def load(name: str) -> LoadedPlugin:
    """A plugin by its entry-point name, or by the import path `package.module[:attribute]`."""
    points = [point for point in installed_points() if point.name == name]
    if len(points) > 1:
        where = ", ".join(f"{p.dist.name if p.dist else '?'} ({p.value})" for p in points)
        raise PluginError(f"plugin {name!r} is provided by more than one distribution: {where}; uninstall one")
    if points:
        return load_point(name, points[0])
    if "." in name or ":" in name:
        return load_point(name, EntryPoint(name, name, GROUP))
    known = sorted({point.name for point in installed_points()})
    raise PluginError(f"there is no plugin {name!r}{nearest(name, known)}; `medtrain plugins list` shows all")


def check(name: str, plugin: Any, plain: bool = False) -> LoadedPlugin:
    """A plugin object, after pluggy agrees with every hook's name and arguments.

    plain: its methods that are called like lifecycle hooks are hooks without a mark, as for callbacks elsewhere.
    """
    manager = _manager()
    if plain:
        manager.unmarked.add(id(plugin))
        _refuse_misspelt(name, plugin)
    try:
        manager.register(plugin, name=name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(_validation_message(name, manager, plugin, error)) from None
    hooks = {}
    for hook in hookspecs.ALL:
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            if (
                implementation.tryfirst
                or implementation.trylast
                or implementation.wrapper
                or implementation.hookwrapper
            ):
                raise PluginError(
                    f"plugin {name!r}, hook {hook}: tryfirst, trylast and wrappers are refused; "
                    "the order of plugins is that of the command line"
                )
            hooks[hook] = implementation.function
    if not hooks and not hasattr(plugin, "configure"):
        raise PluginError(f"plugin {name!r} implements no hook; mark functions with @medtrain.hookimpl")
    return LoadedPlugin(name, plugin, hooks, plain)


class Plugins:
    """The plugins of one run: `loaded` are the chosen ones in command-line order, `defaults` are always there."""

    def __init__(self, loaded: Sequence[LoadedPlugin]) -> None:
        self.loaded = list(loaded)
        names = [plugin.name for plugin in self.loaded]
        for name in names:
            if names.count(name) > 1:
                raise PluginError(f"plugin {name!r} is named twice; name it once")
        self.defaults = [load_point(name, EntryPoint(name, value, GROUP)) for name, value in DEFAULT_PLUGINS.items()]
        for plugin in self.defaults:
            plugin.default = True
        self.manager = _manager()
        # pluggy asks the last registered first.
        for plugin in [*self.defaults, *self.loaded]:
            if plugin.plain:
                self.manager.unmarked.add(id(plugin.plugin))
            self.manager.register(plugin.plugin, name=f"default {plugin.name}" if plugin.default else plugin.name)

    @classmethod
    def of(cls, plugins: Sequence[Any]) -> Plugins:
        """From names, `LoadedPlugin`s and plain objects with hook methods; the second `X` is called `X-2`."""
        loaded: list[LoadedPlugin] = []
        for plugin in plugins:
            if isinstance(plugin, str):
                loaded.append(load(plugin))
            elif isinstance(plugin, LoadedPlugin):
                loaded.append(plugin)
            else:
                name = _free_name(plugin, [other.name for other in loaded])
                loaded.append(check(name, plugin, plain=not inspect.ismodule(plugin)))
        return cls(loaded)

    @property
    def names(self) -> list[str]:
        return [plugin.name for plugin in self.loaded]

    @property
    def stateful(self) -> dict[str, Any]:
        """The plugins with `state_dict` and `load_state_dict`, by name."""
        everyone = [*self.loaded, *self.defaults]
        return {plugin.name: plugin.plugin for plugin in everyone if hasattr(plugin.plugin, "state_dict")}

    def options(self) -> dict[str, Any]:
        """Options model (or None) by plugin."""
        return {plugin.name: plugin.options() for plugin in self.loaded}

    def first_result(self, hook: str, **arguments: Any) -> Any:
        """The winning answer of a building or doing hook; None when nobody answers, NONE when "none" was said."""
        return getattr(self.manager.hook, hook)(**arguments)

    def required(self, hook: str, **arguments: Any) -> Any:
        """The winning answer of a hook that somebody has to answer; raises PluginError."""
        answer = self.first_result(hook, **arguments)
        if answer is None or answer is hookspecs.NONE:
            chosen = ", ".join(self.names) or "(none chosen)"
            raise PluginError(f"none of the plugins {chosen} answers {hook}")
        return answer

    def default_result(self, hook: str, **arguments: Any) -> Any:
        """What the default plugin answers, whatever the chosen ones say."""
        (answer,) = (p.hooks[hook](**arguments) for p in self.defaults if hook in p.hooks)
        return answer

    def all_results(self, hook: str, **arguments: Any) -> list[Any]:
        """Every plugin's answer, the default plugins' first, then in command-line order."""
        # pluggy calls the last registered first; here the order of the calls matters too.
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        given = [{name: arguments[name] for name in one.argnames} for one in implementations]
        answers = [one.function(**own) for one, own in zip(implementations, given, strict=True)]
        return [answer for answer in answers if answer is not None]

    def lifecycle(self, hook: str) -> list[Callable[[Any], None]]:
        """A lifecycle hook's implementations in command-line order, the default plugins' last; each takes the run."""
        implementations = getattr(self.manager.hook, hook).get_hookimpls()
        defaults = [one for one in implementations if one.plugin_name.startswith("default ")]
        chosen = [one for one in implementations if one not in defaults]
        return [_taking_run(one.function, bool(one.argnames)) for one in [*chosen, *defaults]]


def installed_points() -> list[EntryPoint]:
    """Entry points of the group, each once: an editable install may be listed twice on the path."""
    unique = {}
    for point in entry_points(group=GROUP):
        unique[point.name, point.value, point.dist.name if point.dist else ""] = point
    return list(unique.values())


class _Manager(pluggy.PluginManager):
    """pluggy's manager; of the objects in `unmarked`, methods called like lifecycle hooks are hooks too."""

    def __init__(self) -> None:
        super().__init__("medtrain")
        self.unmarked: set[int] = set()

    def parse_hookimpl_opts(self, plugin: Any, name: str) -> Any:
        options = super().parse_hookimpl_opts(plugin, name)
        if options is not None or id(plugin) not in self.unmarked or name not in hookspecs.LIFECYCLE:
            return options
        if not inspect.isroutine(getattr(plugin, name, None)):
            return None
        flags = dict.fromkeys(("wrapper", "hookwrapper", "optionalhook", "tryfirst", "trylast"), False)
        return {**flags, "specname": None}


def _refuse_misspelt(name: str, plugin: Any) -> None:
    """Methods called `on_...` are meant as hooks: an unknown one is a slip, or another library's hook."""
    for attribute in dir(plugin):
        if not attribute.startswith("on_") or attribute in hookspecs.LIFECYCLE:
            continue
        if inspect.isroutine(getattr(plugin, attribute, None)):
            raise PluginError(
                f"plugin {name!r}: there is no hook {attribute!r}{nearest(attribute, hookspecs.LIFECYCLE)}; "
                f"known: {', '.join(hookspecs.LIFECYCLE)}"
            )


def _free_name(plugin: Any, taken: Sequence[str]) -> str:
    name = str((plugin if hasattr(plugin, "__name__") else type(plugin)).__name__)
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _manager() -> _Manager:
    manager = _Manager()
    for group in (hookspecs.Building, hookspecs.Doing, hookspecs.Lifecycle):
        manager.add_hookspecs(group)
    return manager


def target_of(point: EntryPoint) -> tuple[str, str]:
    """Module and attribute of an entry point; both empty when its text is no import path."""
    return (point.module, point.attr) if point.pattern.match(point.value) else ("", "")


def bad_target(value: str) -> str:
    return f"{value!r} is not an import path such as package.module:name"


def load_point(name: str, point: EntryPoint) -> LoadedPlugin:
    if not target_of(point)[0]:
        raise PluginError(f"plugin {name!r}: {bad_target(point.value)}")
    try:
        plugin = point.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module raises becomes one row or one message
        raise PluginError(f"plugin {name!r} ({point.value}) cannot be imported: {_one_line(error)}") from error
    return check(name, plugin() if isinstance(plugin, type) else plugin)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _validation_message(name: str, manager: pluggy.PluginManager, plugin: Any, error: Exception) -> str:
    for attribute in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, attribute) is not None and attribute not in hookspecs.ALL:
            return f"plugin {name!r}: there is no hook {attribute!r}{nearest(attribute, hookspecs.ALL)}"
    return f"plugin {name!r}: {' '.join(str(error).split())}"


def _taking_run(function: Callable[..., Any], takes_run: bool) -> Callable[[Any], None]:
    return function if takes_run else lambda run: function()
