"""No module imports itself by way of others, in functions and under TYPE_CHECKING neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from house import imports
from house.settings import Settings
from house.tree import LAZY_FACES, PLUGINS, Module
from house.violation import Violation

RULE = "circle"
Edges = dict[str, dict[str, int]]


def check(modules: Mapping[str, Module], settings: Settings) -> Iterator[Violation]:
    edges = read(modules)
    for knot in _knots(edges):
        circle = _shortest(edges, knot)
        first = modules[circle[0]]
        more = f" (in a knot of {len(knot)} modules)" if len(knot) >= len(circle) else ""
        text = f"{' -> '.join(circle)}{more}; move what both sides need into a module that imports neither"
        yield Violation(first.path, edges[circle[0]][circle[1]], RULE, text)


def read(modules: Mapping[str, Module]) -> Edges:
    """The modules that each module imports, with the line.

    Only the module that a statement names counts, not the packages above it. What the lazy `__init__` files import of
    the default plugins is left out: plugins import `medtrain`, so each such import would close a circle.
    """
    edges: Edges = {}
    for module in modules.values():
        targets = edges.setdefault(module.name, {})
        for found in imports.read(module):
            target = imports.imported_module(found, modules)
            if target and not (module.name in LAZY_FACES and target.startswith(f"{PLUGINS}.")):
                targets.setdefault(target, found.line)
    return edges


def _knots(edges: Edges) -> list[list[str]]:
    """Groups of modules that all reach each other."""
    reached = {name: _reached(edges, name) for name in edges}
    knots: dict[str, list[str]] = {}
    for name in sorted(edges):
        if name in reached[name]:
            members = sorted(other for other in reached[name] if name in reached[other])
            knots.setdefault(members[0], members)
    return list(knots.values())


def _reached(edges: Edges, start: str) -> set[str]:
    """Modules at the end of one import or more."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in edges[waiting.pop()]:
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def _shortest(edges: Edges, knot: list[str]) -> list[str]:
    """The shortest circle of a knot, its first module repeated at the end."""
    return min((_back_to(edges, name) for name in knot), key=len)


def _back_to(edges: Edges, start: str) -> list[str]:
    paths = [[start]]
    seen: set[str] = set()
    for path in paths:  # grows: breadth first
        for target in sorted(edges[path[-1]]):
            if target == start:
                return [*path, start]
            if target not in seen:
                seen.add(target)
                paths.append([*path, target])
    raise ValueError(f"no circle through {start}")
