"""What a training step costs beyond its arithmetic: medtrain against other trainers, on the work of overhead.py.

Every contestant runs in a process of its own, in turn, several times, and is held against the bare loop of its own
environment: ClinicaDL 2.0 needs an older torch than the rest. What counts is the best epoch over all processes, the
first epoch of each left out.

    python benchmarks/peers.py --lightning ENV/bin/python --clinicadl ENV/bin/python

lightning: a Python that has lightning (2.6) beside the same torch as this one. clinicadl: one that has clinicadl
(2.0.0, which needs torch below 2.7). Either may be left out. Also: what importing each takes, beside torch.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).parent
STEPS = 16  # of an epoch in overhead.py

IMPORTS = {
    "medtrain": "from medtrain import Trainer",
    "accelerate": "from accelerate import Accelerator",
    "Lightning": "import lightning",
    "ClinicaDL": "import clinicadl.train",
}


def contestants(epochs: int, lightning: str | None, clinicadl: str | None) -> dict[str, tuple[str, list[str]]]:
    """Name -> name of the bare loop it is held against, and command."""
    own = [sys.executable, str(HERE / "overhead.py"), "--epochs", str(epochs), "--one"]
    found = {
        "bare torch": ("bare torch", [*own, "bare"]),
        "medtrain": ("bare torch", [*own, "medtrain"]),
        "medtrain, a checkpoint per epoch": ("bare torch", [*own, "medtrain_default"]),
        "accelerate": ("bare torch", [*own, "accelerate"]),
    }
    for kind in ("lean", "default") if lightning else ():
        script = str(HERE / "peers" / "lightning_steps.py")
        found[f"Lightning {kind}"] = ("bare torch", [lightning or "", script, kind, str(epochs)])
    if clinicadl:
        bare = "bare torch of ClinicaDL's"
        found[bare] = (bare, [clinicadl, *own[1:], "bare"])
        for kind in ("lean", "default"):
            script = str(HERE / "peers" / "clinicadl_steps.py")
            found[f"ClinicaDL {kind}"] = (bare, [clinicadl, script, kind, str(epochs)])
    return found


def answer(command: list[str]) -> str:
    """The last line that a process prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout.strip().splitlines()[-1]


def overheads(rounds: int, chosen: dict[str, tuple[str, list[str]]]) -> None:
    """Interleaved rounds, a table."""
    best: dict[str, list[float]] = {name: [] for name in chosen}
    loads = []
    for _ in range(rounds):
        for name, (_, command) in chosen.items():
            loads.append(os.getloadavg()[0])
            marks = json.loads(answer(command))
            best[name].append(min(b - a for a, b in pairwise(marks[1:])) / STEPS * 1e6)
            print(f"{name}: {best[name][-1]:.0f}", file=sys.stderr, flush=True)
    print(f"1-minute load {min(loads):.1f} to {max(loads):.1f}, {rounds} processes each\n")
    print("| | best epoch, µs/step | over the bare loop, µs | ratio | median over processes | ratio of medians |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, values in best.items():
        base = best[chosen[name][0]]
        low, middle = min(values), statistics.median(values)
        over, ratio = low - min(base), low / min(base)
        middles = middle / statistics.median(base)
        print(f"| {name} | {low:.0f} | {over:.0f} | {ratio:.2f} | {middle:.0f} | {middles:.2f} |")


def imports(rounds: int, pythons: dict[str, str]) -> None:
    """Seconds inside the import, torch being there already."""
    seconds: dict[str, list[float]] = {"torch itself": [], **{name: [] for name in pythons}}
    for _ in range(rounds):
        for name, python in {"torch itself": sys.executable, **pythons}.items():
            before, timed = ("pass", "import torch") if name == "torch itself" else ("import torch", IMPORTS[name])
            code = f"import time\n{before}\na = time.perf_counter()\n{timed}\nprint(time.perf_counter() - a)"
            seconds[name].append(float(answer([python, "-c", code])))
    print("\n| import, with torch there already | best, s | median, s |\n| --- | ---: | ---: |")
    for name, values in seconds.items():
        print(f"| {name} | {min(values):.2f} | {statistics.median(values):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lightning", metavar="PYTHON")
    parser.add_argument("--clinicadl", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    arguments = parser.parse_args()
    overheads(arguments.rounds, contestants(arguments.epochs, arguments.lightning, arguments.clinicadl))
    pythons = {"medtrain": sys.executable, "accelerate": sys.executable}
    pythons |= {"Lightning": arguments.lightning} if arguments.lightning else {}
    pythons |= {"ClinicaDL": arguments.clinicadl} if arguments.clinicadl else {}
    imports(arguments.rounds, pythons)


if __name__ == "__main__":
    main()
