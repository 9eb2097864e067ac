"""Which checkpoints are kept, under which names: `last`, the best of each value, periodic and chosen ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medtrain.config.sections import CheckpointSection
from medtrain.errors import CheckpointError
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import LAST as LAST
from medtrain.rundir.directory import SplitFolder


class Mark(NamedTuple):
    """Which state of the run a checkpoint is: epochs that are complete in it, and optimizer steps."""

    epochs: int
    step: int


class Place(NamedTuple):
    """A value in a ranking, the epoch (from 0) it was found in, and the state it belongs to."""

    value: float
    epoch: int
    mark: Mark


class Ranking:
    """The best k values of one name so far, best first. NaN never enters, and an equal value ranks behind."""

    def __init__(self, mode: Literal["max", "min"], size: int = 1) -> None:
        self.mode, self.size = mode, size
        self.entries: list[Place] = []

    @property
    def best(self) -> float | None:
        return self.entries[0].value if self.entries else None

    @property
    def epoch(self) -> int | None:
        return self.entries[0].epoch if self.entries else None

    @property
    def step(self) -> int | None:
        return self.entries[0].mark.step if self.entries else None

    def update(self, value: float, epoch: int, mark: Mark) -> bool:
        """Take a value; True when it is among the best."""
        if math.isnan(value):
            return False
        better = [place for place in self.entries if not self._improves(value, place.value)]
        if len(better) >= self.size:
            return False
        self.entries.insert(len(better), Place(value, epoch, mark))
        del self.entries[self.size :]
        return True

    def _improves(self, value: float, held: float) -> bool:
        return value > held if self.mode == "max" else value < held

    def state_dict(self) -> dict[str, Any]:
        return {"entries": [[value, epoch, *mark] for value, epoch, mark in self.entries]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        entries = [Place(value, epoch, Mark(*mark)) for value, epoch, *mark in state["entries"]]
        self.entries = entries[: self.size]


class Keeper:
    """The checkpoint folders of one split. Deciding is everybody's, writing the main process's.

    values: name -> direction of the values whose best checkpoints are looked for, the monitored one first.
    """

    def __init__(
        self,
        settings: CheckpointSection,
        folder: SplitFolder,
        values: dict[str, Literal["max", "min"]],
    ) -> None:
        self.settings, self.folder = settings, folder
        self.rankings = {name: Ranking(mode, settings.top_k) for name, mode in values.items()}
        monitored = next(iter(values))
        self.kept_values = [name for name in values if name != monitored or settings.best or name in settings.metrics]

    def judge(self, metrics: dict[str, float], mark: Mark, epoch: int) -> bool:
        """Take the values of an evaluation; True when its model is worth a checkpoint of its own."""
        placed = {name for name, ranking in self.rankings.items() if ranking.update(metrics[name], epoch, mark)}
        return bool(placed & set(self.kept_values))

    def epoch_names(self, epochs: int) -> list[str]:
        """Names besides `last` and `best-*` for the state after so many epochs."""
        every = self.settings.every_n_epochs
        due = (every and epochs % every == 0) or epochs in self.settings.epochs
        return [f"epoch-{epochs:04d}"] if due else []

    def is_due(self, epochs: int) -> bool:
        """Whether `last` is renewed after so many epochs."""
        every = self.settings.last_every_n_epochs
        return bool(every and epochs % every == 0)

    def best_names(self, value: str) -> list[str]:
        """`best-<value>`, `best-<value>-2`, ...: as many as there may be."""
        return [f"best-{value}", *(f"best-{value}-{place}" for place in range(2, self.settings.top_k + 1))]

    def arrange(self) -> None:
        """Make the `best-*` folders hold what the rankings say, from the checkpoints there are.

        It compares folders with rankings and not with what was there before, so that a crash on the way is made good
        by the next call. Until then, every checkpoint that is still wanted is in one folder at least.
        """
        if not self.kept_values:
            return
        held = self._marks_on_disk()
        for value in self.kept_values:
            places = [self.folder.checkpoint(name) for name in self.best_names(value)]
            wanted = [place.mark for place in self.rankings[value].entries]
            moves = []
            for number, (place, mark) in enumerate(zip(places, wanted, strict=False)):
                if held.get(place) == mark:
                    continue
                source = next((path for path, there in held.items() if there == mark), None)
                if source is not None:
                    moves.append((number, source, place, mark))
            # The order of the survivors is that of the values, before as after: what moves up goes first, from the
            # top, then what moves down, from the bottom; so nothing is overwritten that is still to be moved.
            up = [move for move in moves if move[1] in places[move[0] + 1 :]]
            down = [move for move in moves if move not in up]
            for _, source, place, mark in [*up, *reversed(down)]:
                checkpoint.link(source, place)
                held[place] = mark
            for number, place in enumerate(places):
                if place in held and (number >= len(wanted) or held[place] != wanted[number]):
                    checkpoint.remove(place)
                    del held[place]

    def _marks_on_disk(self) -> dict[Path, Mark]:
        """What the checkpoints are of; `last` first, which is the newest."""
        found = {}
        paths = [path.parent for path in self.folder.path.glob(f"[!.]*/{checkpoint.MANIFEST}")]
        for path in sorted(paths, key=lambda path: (path.name != LAST, path.name)):
            try:
                manifest = checkpoint.read_manifest(path)
            except CheckpointError:  # a damaged one is no source; whoever wants it will be told
                continue
            found[path] = Mark(int(manifest["epoch"]), int(manifest["step"]))
        return found

    def prune(self) -> None:
        """Drop all but the newest periodic checkpoints; the chosen epochs stay."""
        keep = self.settings.keep_last_n
        if keep is None:
            return
        chosen = {f"epoch-{number:04d}" for number in self.settings.epochs}
        for kind in ("epoch-", "step-"):
            names = [path for path in self.folder.checkpoints() if path.name.startswith(kind)]
            for path in [path for path in names if path.name not in chosen][:-keep]:
                checkpoint.remove(path)

    def finish(self) -> None:
        """A complete run may do without `last`, when it has another checkpoint."""
        last = self.folder.checkpoint(LAST)
        if not self.settings.save_last and any(path != last for path in self.folder.checkpoints()):
            checkpoint.remove(last)
            checkpoint.remove(checkpoint.predecessor(last))

    def forget_later(self, step: int) -> None:
        """Drop checkpoints of a future that is going to be lived again."""
        for path in self.folder.checkpoints():
            if checkpoint.read_manifest(path)["step"] > step:
                checkpoint.remove(path)

    def give_names(self, step: int, epochs: int) -> None:
        """The other names of `last`, in case the run was killed between writing it and giving it them."""
        last = self.folder.checkpoint(LAST)
        if last.is_dir() and checkpoint.read_manifest(last)["step"] == step:
            for name in self.epoch_names(epochs):
                if not self.folder.checkpoint(name).is_dir():
                    checkpoint.link(last, self.folder.checkpoint(name))

    def state_dict(self) -> dict[str, Any]:
        return {name: ranking.state_dict() for name, ranking in self.rankings.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, ranking in self.rankings.items():
            if name in state:
                ranking.load_state_dict(state[name])


def kept(settings: CheckpointSection, monitored: str, modes: dict[str, Any]) -> dict[str, Literal["max", "min"]]:
    """The values whose best checkpoints are looked for, with their directions; the monitored one first."""
    names: Sequence[str] = list(dict.fromkeys([monitored, *settings.metrics]))
    return {name: modes[name] for name in names}
