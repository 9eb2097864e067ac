"""How fast clips of signs reach the model: medtrain's container against open npz files and work per item.

Both methods deliver the same thing, batches of 64 augmented clips (64, 50, 736) float32 in random order, from the same
5,000 synthetic clips, with two loader processes:

    npz        one compressed npz per signer and sign, handles kept open in a cache; in the worker, per clip: decode,
               sample 50 frames, mirror, rotate, zoom and shift with NumPy; default collate. As published training does.
    medtrain   the memory-mapped container; workers look at the clips and draw, the training process packs whole batches
               from the map, samples and augments them at once

Each contestant runs in a process of its own, in turn, several times; what counts is the better of its two epochs, from
the first batch to the last (the start of the workers is not counted), and the ratio within a round, since the machine's
speed swings between rounds. With the file a table is written to benchmarks/results/karsl_loader.md.

    python benchmarks/karsl_loader.py --rounds 5
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIGNS, SIGNERS, REPEATS = 50, 2, 50
CLIPS = SIGNS * SIGNERS * REPEATS
BATCH, FRAMES, WORKERS, EPOCHS = 64, 50, 2, 2
RESULTS = Path(__file__).parent / "results" / "karsl_loader.md"
CONTESTANTS = ("npz", "medtrain")
Round = dict[str, dict[str, float]]


def make(folder: Path) -> None:
    """The clips, in both layouts. All of them count as clips to train on."""
    from medtrain_plugins.sign.data.container import Clip, write_container
    from medtrain_plugins.sign.data.synth import synthesize

    synthesize(folder / "made", range(1, SIGNS + 1), REPEATS, signers=SIGNERS, dtype="float32")
    from medtrain_plugins.sign.data.formats import open_clips

    clips = [Clip(c.clip, c.sign, c.signer, "train", c.frames) for c in open_clips(folder / "made")]
    write_container(folder / "container", clips, {})
    for signer in range(1, SIGNERS + 1):
        part = folder / "npz" / f"{signer:02d}-train"
        part.mkdir(parents=True)
        for sign in range(1, SIGNS + 1):
            mine = {c.clip: c.frames.astype(np.float64) for c in clips if (c.sign, c.signer) == (sign, signer)}
            np.savez_compressed(part / f"{sign:04d}.npz", **mine)


class PerItem(torch.utils.data.Dataset[Any]):
    """A clip at a time from open npz files."""

    def __init__(self, folder: Path) -> None:
        self.index = []
        for path in sorted(folder.glob("*/*.npz")):
            with np.load(path) as file:
                self.index += [(path, key, int(path.stem) - 1) for key in file.files]
        self.handle = lru_cache(1024)(np.load)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> Any:
        path, key, label = self.index[number]
        clip = self.sampled(self.handle(path)[key])
        if random.random() < 0.5:
            clip = self.mirrored(clip)
        if random.random() < 0.5:
            clip = self.moved(clip)
        return clip.astype(np.float32).reshape(FRAMES, -1), label

    def sampled(self, clip: Any) -> Any:
        places = (np.arange(FRAMES) + 0.1 + 0.8 * np.random.rand(FRAMES)) * (len(clip) / FRAMES)  # noqa: NPY002
        places = np.clip(places, 0, len(clip) - 1 - 1e-6)
        below = np.floor(places).astype(int)
        share = (places - below)[:, None, None]
        return (1 - share) * clip[below] + share * clip[np.ceil(places).astype(int)]

    def mirrored(self, clip: Any) -> Any:
        clip = clip.copy()
        clip[..., 0] *= -1
        clip[:, 142:163], clip[:, 163:] = clip[:, 163:].copy(), clip[:, 142:163].copy()
        return clip

    def moved(self, clip: Any) -> Any:
        angle, scale = np.deg2rad(np.random.uniform(-15, 15)), np.random.uniform(0.85, 1.15)  # noqa: NPY002
        matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        clip[..., :2] = clip[..., :2] @ matrix.T + np.random.uniform(-0.1, 0.1, 2)  # noqa: NPY002
        return clip


def npz(folder: Path) -> Any:
    from torch.utils.data import DataLoader

    loader = DataLoader(PerItem(folder / "npz"), BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    for _ in range(EPOCHS):
        yield (clips for clips, _ in loader)
    loader._iterator._shutdown_workers()


def medtrain(folder: Path) -> Any:
    from medtrain.data import Loader
    from medtrain_plugins.sign.data.augmentation import ClipAugmentation
    from medtrain_plugins.sign.data.dataset import ClipDataset, collate
    from medtrain_plugins.sign.data.formats import open_clips

    clips = open_clips(folder / "container")
    dataset = ClipDataset(clips, range(len(clips.index)), range(1, SIGNS + 1), adjusted=True)
    augmentation = ClipAugmentation(FRAMES)
    loader = Loader(dataset, BATCH, shuffle=True, augmentation=augmentation, collate_fn=collate, num_workers=WORKERS)
    for epoch in range(EPOCHS):
        yield (augmentation(item.batch, item.draws or {})["keypoints"] for item in loader.epoch(epoch))
    loader.close()


def measure(contestant: str, folder: Path) -> dict[str, float]:
    """`rate`, clips per second in the better epoch; `cpu`, microseconds of all processes for a clip."""
    torch.set_num_threads(1)  # threads that wait for each other would disturb the loader processes
    rates, before = [], cpu_seconds()
    for batches in {"npz": npz, "medtrain": medtrain}[contestant](folder):
        first = next(batches)
        assert first.shape == (BATCH, FRAMES, 736) and first.dtype == torch.float32
        started, seen = time.perf_counter(), 0
        for batch in batches:
            seen += len(batch)
        rates.append(seen / (time.perf_counter() - started))
        assert seen == CLIPS - BATCH
    gc.collect()
    return {"rate": max(rates), "cpu": (cpu_seconds() - before) / (EPOCHS * CLIPS) * 1e6}


def cpu_seconds() -> float:
    """Of this process and of its children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, help="Folder to keep the clips in between calls.")
    parser.add_argument("--measure", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--check", type=float, help="Fail when the median ratio is below this.")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.data)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or Path(temporary)
        if not (folder / "npz").is_dir():
            print(f"making {CLIPS} clips")
            make(folder)
        rounds: list[Round] = []
        for number in range(arguments.rounds):
            rates: Round = {}
            for contestant in CONTESTANTS if number % 2 else CONTESTANTS[::-1]:
                command = [sys.executable, __file__, "--measure", contestant, "--data", str(folder)]
                output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                rates[contestant] = json.loads(output.splitlines()[-1])
            rounds.append(rates)
            print(row(number + 1, rates))
    ratios = sorted(rates["medtrain"]["rate"] / rates["npz"]["rate"] for rates in rounds)
    report(rounds, ratios)
    if arguments.check and statistics.median(ratios) < arguments.check:
        sys.exit(f"the median ratio {statistics.median(ratios):.2f} is below {arguments.check}")


def row(number: int, rates: Round) -> str:
    one, other = rates["npz"], rates["medtrain"]
    speed, work = other["rate"] / one["rate"], one["cpu"] / other["cpu"]
    cells = (number, f"{one['rate']:,.0f}", f"{other['rate']:,.0f}", f"{speed:.1f}")
    cells = (*cells, f"{one['cpu']:,.0f}", f"{other['cpu']:,.0f}", f"{work:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def report(rounds: list[Round], ratios: list[float]) -> None:
    work = sorted(rates["npz"]["cpu"] / rates["medtrain"]["cpu"] for rates in rounds)
    lines = [
        "# Loading clips of signs",
        "",
        f"`python benchmarks/karsl_loader.py --rounds {len(rounds)}`: {CLIPS:,} synthetic clips of {SIGNS} signs by "
        f"{SIGNERS} signers, batches of {BATCH} augmented clips ({FRAMES}, 736), {WORKERS} loader processes, "
        f"{os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]}, NumPy {np.__version__}, "
        f"Python {platform.python_version()}.",
        "",
        "| round | npz: clips/s | medtrain: clips/s | ratio | npz: CPU us/clip | medtrain: CPU us/clip | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(row(number, rates) for number, rates in enumerate(rounds, 1)),
        "",
        f"Clips per second: {spread(ratios)}. CPU time: {spread(work)}; it counts all processes and does not depend on "
        "what else the machine does.",
        "",
    ]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("\n".join(lines), encoding="utf-8")


def spread(ratios: list[float]) -> str:
    return f"median {statistics.median(ratios):.1f} times, lowest {ratios[0]:.1f}, highest {ratios[-1]:.1f}"


if __name__ == "__main__":
    main()
