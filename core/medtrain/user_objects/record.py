"""What a run directory records of a training's inputs besides its configuration, and how they come back."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from medtrain import hookspecs
from medtrain.data.split import Split
from medtrain.errors import UsageError
from medtrain.plugins import Plugins
from medtrain.protocols.dataset import Data
from medtrain.user_objects import recipe
from medtrain.user_objects.user_objects import UserObjects, described

logger = logging.getLogger(__name__)


def is_kept(callback: Any) -> bool:
    """Whether a callback belongs to the run; a progress display does not."""
    return not getattr(callback, "transient", False)


def is_plugin(kind: type) -> bool:
    """Whether instances have hook methods, or change the configuration."""
    return hasattr(kind, "configure") or any(hasattr(kind, hook) for hook in hookspecs.ALL)


def rebuild_plugins(recorded: Sequence[Any], what: str) -> list[Any]:
    """Plugins or callbacks given as objects; those that could not be recorded are told and left out."""
    found = []
    for item in recorded:
        if "unwritable" in item:
            logger.warning("going on without one of the %s (%s); give it again to have it", what, item["unwritable"])
        else:
            found.append(recipe.rebuild(item, is_plugin, what))
    return found


def describe_objects(
    objects: UserObjects, plugins: Plugins, callbacks: Sequence[Any], named: Sequence[str]
) -> dict[str, Any]:
    """What the run directory keeps of objects that are no plugins by name. named: those that are."""
    kept = objects.recipes()
    others = [p.plugin for p in plugins.loaded if p.name not in named and p.plugin is not objects]
    groups = {"plugins": [p for p in others if p not in callbacks], "callbacks": callbacks}
    for name, items in groups.items():
        if recipes := [described(item) for item in items if is_kept(item)]:
            kept[name] = recipes
    return kept


def describe_data(data: Data | Split) -> dict[str, Any]:
    """Data given in Python, as the run directory keeps them: a recipe, or the reason why there is none."""
    named = {"whole": data.whole, **data.groups()} if isinstance(data, Data) else data.groups
    feeding = data.feeding if isinstance(data, Split) else {}
    try:
        return {
            "kind": "split" if isinstance(data, Split) else "data",
            "groups": {name: recipe.recipe(dataset) for name, dataset in named.items() if dataset is not None},
            "collate": recipe.recipe(data.collate),
            "about": data.about,
            "feeding": feeding,
        }
    except recipe.NotSerializable as error:
        return {"unwritable": str(error)}


def rebuild_data(recorded: dict[str, Any], index: int) -> Data | Split:
    """The data behind such a record. UsageError: they have to be given again."""
    if "unwritable" in recorded:
        raise UsageError(f"the data of this split are not recorded ({recorded['unwritable']}); give them as split=")
    groups = {
        name: recipe.rebuild(dataset, recipe.is_dataset, "dataset") for name, dataset in recorded["groups"].items()
    }
    collate = recipe.function(recorded["collate"], "collate function")
    if recorded["kind"] == "data":
        return Data(**groups, collate=collate, about=recorded["about"])
    return Split(groups, collate, recorded["about"], index, recorded["feeding"])
