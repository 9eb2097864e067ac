"""Which checkpoints are kept, under which names: `last`, the best of each value, periodic and chosen ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from medtrain.config.sections import CheckpointSection
from medtrain.errors import CheckpointError
from medtrain.protocols.ranking import CheckpointId, Ranking
from medtrain.rundir import checkpoint
from medtrain.rundir.directory import LAST, SplitFolder


class CheckpointRetention:
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

    def update_best(self, values: dict[str, float], state: CheckpointId, epoch: int) -> bool:
        """Take the values of an evaluation; True when its model is worth a checkpoint of its own."""
        ranked = {name for name, ranking in self.rankings.items() if ranking.update(values[name], epoch, state)}
        return bool(ranked & set(self.kept_values))

    @property
    def acts_within_epochs(self) -> bool:
        return bool(self.settings.every_n_steps or self.settings.last_every_n_steps)

    def epoch_names(self, epochs: int) -> list[str]:
        """Names besides `last` and `best-*` for the state after so many epochs."""
        every = self.settings.every_n_epochs
        due = (every and epochs % every == 0) or epochs in self.settings.epochs
        return [f"epoch-{epochs:04d}"] if due else []

    def is_due_after_epoch(self, epochs: int) -> bool:
        """Whether `last` is renewed after so many epochs."""
        every = self.settings.last_every_n_epochs
        return bool(every and epochs % every == 0)

    def step_names(self, step: int) -> list[str]:
        """Names besides `last` and `best-*` for the state after so many steps."""
        every = self.settings.every_n_steps
        return [f"step-{step:08d}"] if every and step % every == 0 else []

    def is_due_after_step(self, step: int) -> bool:
        """Whether `last` is renewed within an epoch."""
        every = self.settings.last_every_n_steps
        return bool(every and step % every == 0)

    def best_names(self, value: str) -> list[str]:
        """`best-<value>`, `best-<value>-2`, ...: as many as there may be."""
        return [f"best-{value}", *(f"best-{value}-{place}" for place in range(2, self.settings.top_k + 1))]

    def after_write(self, folder: Path, names: Sequence[str], is_best: bool) -> None:
        """Give a checkpoint that was written its further names, and remove what it takes the place of."""
        for name in names:
            checkpoint.link(folder, self.folder.checkpoint(name))
        if is_best:
            self.arrange()
        self.prune()

    def arrange(self) -> None:
        """Make the `best-*` folders hold what the rankings say, from the checkpoints there are.

        It compares folders with rankings and not with what was there before, so that a crash on the way is made good
        by the next call. Until then, every checkpoint that is still wanted is in one folder at least.
        """
        if not self.kept_values:
            return
        held = self._states_on_disk()
        for value in self.kept_values:
            places = [self.folder.checkpoint(name) for name in self.best_names(value)]
            wanted = [entry.checkpoint for entry in self.rankings[value].entries]
            moves = []
            for number, (place, state) in enumerate(zip(places, wanted, strict=False)):
                if held.get(place) == state:
                    continue
                source = next((path for path, there in held.items() if there == state), None)
                if source is not None:
                    moves.append((number, source, place, state))
            # The order of the survivors is that of the values, before as after: what moves up goes first, from the
            # top, then what moves down, from the bottom; so nothing is overwritten that is still to be moved.
            up = [move for move in moves if move[1] in places[move[0] + 1 :]]
            down = [move for move in moves if move not in up]
            for _, source, place, state in [*up, *reversed(down)]:
                checkpoint.link(source, place)
                held[place] = state
            for number, place in enumerate(places):
                if place in held and (number >= len(wanted) or held[place] != wanted[number]):
                    checkpoint.remove(place)
                    del held[place]

    def _states_on_disk(self) -> dict[Path, CheckpointId | None]:
        """Which state each checkpoint is of; `last` first, which is the newest."""
        found: dict[Path, CheckpointId | None] = {}
        paths = [path.parent for path in self.folder.path.glob(f"[!.]*/{checkpoint.MANIFEST}")]
        for path in sorted(paths, key=lambda path: (path.name != LAST, path.name)):
            try:
                manifest = checkpoint.read_manifest(path)
            except CheckpointError:  # a damaged one is no source; whoever wants it gets the error
                continue
            found[path] = CheckpointId(int(manifest["epoch"]), int(manifest["step"]))
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

    def after_resume(self, step: int, epochs: int, at_epoch_end: bool) -> None:
        """Make the folders those of a run that has just reached this step; later states will come again."""
        for path in self.folder.checkpoints():
            if checkpoint.read_manifest(path)["step"] > step:
                checkpoint.remove(path)
        # The other names of `last`, in case the run was killed between writing it and giving it them.
        last = self.folder.checkpoint(LAST)
        if epochs and at_epoch_end and last.is_dir() and checkpoint.read_manifest(last)["step"] == step:
            for name in self.epoch_names(epochs):
                if not self.folder.checkpoint(name).is_dir():
                    checkpoint.link(last, self.folder.checkpoint(name))
        self.arrange()

    def state_dict(self) -> dict[str, Any]:
        return {name: ranking.state_dict() for name, ranking in self.rankings.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, ranking in self.rankings.items():
            if name in state:
                ranking.load_state_dict(state[name])


def ranked_values(
    settings: CheckpointSection, monitored: str, modes: dict[str, Literal["max", "min"]]
) -> dict[str, Literal["max", "min"]]:
    """The values whose best checkpoints are looked for, with their directions; the monitored one first."""
    names: Sequence[str] = list(dict.fromkeys([monitored, *settings.metrics]))
    return {name: modes[name] for name in names}
