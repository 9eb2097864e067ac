"""What a training step of each risk model costs, beside the same model written down plainly (`baselines`).

Forward and backward on one CPU thread, batch size 1, float32, train mode: CPU seconds, and the peak of memory above
that of the process before the forward pass (gradients included). Both sides have the same weights, and in eval mode
must give the same risks, or nothing is measured. Every figure comes from a process of its own, plain and ours in turn,
several rounds; a time is the best step of all rounds (the machine's speed swings), a memory the median. Linux.

    python benchmarks/risk_models.py                                      all models, and results/risk_models.md
    python benchmarks/risk_models.py --models lmv_net mirai --rounds 1    a look
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results" / "risk_models.md"
SIDES = ("plain", "ours")
STEPS = 3  # timed in each process, after one that is not
TOLERANCE = 1e-4  # of a risk, float32
Size = tuple[int, int]
Batch = dict[str, Tensor]


def view_pair(size: Size) -> Batch:
    images = {key: torch.rand(1, 1, *size) for key in ("current_image", "previous_image")}
    return {**images, "time_gap": torch.tensor([1.5])}


def breast_pair(size: Size) -> Batch:
    keys = (f"{exam}_image_{view}" for exam in ("current", "previous") for view in ("cc", "mlo"))
    return {**{key: torch.rand(1, 1, *size) for key in keys}, "time_gap": torch.tensor([1.5])}


def exam(size: Size) -> Batch:
    places = {"time_seq": [0, 0, 0, 0], "view_seq": [0, 1, 0, 1], "side_seq": [1, 1, 0, 0]}
    return {"images": torch.rand(1, 4, 1, *size), **{key: torch.tensor([place]) for key, place in places.items()}}


def two_visits(size: Size) -> Batch:
    masks = {"exam_mask": torch.ones(1, 2, dtype=torch.bool), "view_mask": torch.ones(1, 2, 4, dtype=torch.bool)}
    return {"images": torch.rand(1, 2, 4, 1, *size), **masks}


def of(*keys: str) -> Callable[[dict[str, Any]], list[Tensor]]:
    return lambda outputs: [outputs[key] for key in keys]


@dataclass(frozen=True)
class Contest:
    """batch: of one sample. trained: the outputs that a loss is made of. options: of `build_model`, beside compat."""

    batch: Callable[[Size], Batch]
    trained: Callable[[dict[str, Any]], list[Tensor]]
    sized: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, model: str, side: str, size: Size) -> nn.Module:
        """Either side, with equal weights."""
        from medtrain import build_model

        options = {**self.options, **({"image_size": size} if self.sized else {})}
        ours = build_model(model, compat="reference", **options)
        spread(ours)
        if side == "ours":
            return ours
        plain: nn.Module = importlib.import_module(f"baselines.{model}").Model(*([size] if self.sized else []))
        plain.load_state_dict(ours.state_dict())
        return plain


CONTESTS = {
    "mirai": Contest(exam, of("logit")),
    "lmv_net": Contest(breast_pair, of("risk_multi", "risk_cc", "risk_mlo")),
    "imgfeatalign": Contest(view_pair, lambda outputs: list(outputs["risk_prediction"].values())),
    "vmra_mar": Contest(two_visits, of("logit")),
    "oa_breacr": Contest(
        view_pair,
        of("final", "current", "prior", "difference", "emb_final", "log_var_final", "loss"),
        sized=True,
        options={"input_norm": "none"},
    ),
}


@torch.no_grad()
def spread(model: nn.Module) -> None:
    """Weights at which the parts matter: flows of pixels, not of nothing; asymmetries inside the range of their scale;
    batch norms with statistics of their own.
    """
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if name.endswith("reg_head.weight"):
            tensor.normal_(0, 0.02, generator=generator)
        elif name.endswith("learned_asym_mean"):
            tensor.fill_(15)
        elif name.endswith("learned_asym_std"):
            tensor.fill_(10)
        elif name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2, generator=generator)
        elif name.endswith("running_mean"):
            tensor.normal_(0, 0.1, generator=generator)


def agreement(model: str, _: str, size: Size) -> float:
    """The largest difference between the two sides' risks in eval mode."""
    contest = CONTESTS[model]
    torch.manual_seed(0)
    batch = contest.batch(size)
    ours, plain = (contest.build(model, side, size).eval() for side in ("ours", "plain"))
    with torch.no_grad():
        pairs = zip(contest.trained(ours(batch)), contest.trained(plain(batch)), strict=True)
    return max((a.sigmoid() - b.sigmoid()).abs().max().item() for a, b in pairs)


def status(name: str) -> float:
    """A line of this process's status, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def stepper(model: str, side: str, size: Size) -> Callable[[], None]:
    """A training step without optimizer."""
    contest = CONTESTS[model]
    torch.manual_seed(0)
    batch = contest.batch(size)
    network = contest.build(model, side, size).train()

    def step() -> None:
        network.zero_grad(set_to_none=True)
        torch.stack([output.square().mean() for output in contest.trained(network(batch))]).sum().backward()

    return step


def seconds(model: str, side: str, size: Size) -> float:
    """CPU seconds of the best step after a first one. Not of the wall: other processes take their share of that."""
    step = stepper(model, side, size)
    found = []
    for _ in range(1 + STEPS):
        start = time.process_time()
        step()
        found.append(time.process_time() - start)
    return min(found[1:])


def memory(model: str, side: str, size: Size) -> float:
    """Peak of the first step in MiB, in a process that returns freed memory at once (see `child`)."""
    step = stepper(model, side, size)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    step()
    return status("VmHWM") - before


def child(what: str, model: str, side: str, size: str) -> float:
    """One figure, from a process of its own."""
    # A fixed threshold keeps the allocator from holding back what is freed, which would hide the difference; and from
    # being as fast as it can, so not where time is measured.
    variables = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": "131072"} if what == "memory" else {})}
    command = [sys.executable, __file__, "--one", what, model, side, "--size", size]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if done.returncode:
        sys.exit(f"{what} of {model}, {side}, failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def compare(model: str, size: str, rounds: int) -> dict[str, Any]:
    """Both sides of a model, in turn."""
    difference = child("agreement", model, "both", size)
    if not difference <= TOLERANCE:
        sys.exit(f"{model}: risks of the two sides differ by {difference:.2g}; there is nothing to compare")
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            for what in ("seconds", "memory"):
                found.setdefault((what, side), []).append(child(what, model, side, size))
    row: dict[str, Any] = {"model": model, "difference": difference}
    for what, chosen in (("seconds", min), ("memory", statistics.median)):
        plain, ours = found[what, "plain"], found[what, "ours"]
        ratios = [b / a for a, b in zip(plain, ours, strict=True)]
        row[what] = {"plain": chosen(plain), "ours": chosen(ours), "ratio": chosen(ours) / chosen(plain)}
        row[what]["range"] = [min(ratios), max(ratios)]
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | plain s | ours s | ours / plain | plain MiB | ours MiB | ours / plain | risks differ by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        seconds, memory = row["seconds"], row["memory"]
        ratios = [f"{of['ratio']:.2f} ({of['range'][0]:.2f} to {of['range'][1]:.2f})" for of in (seconds, memory)]
        lines.append(
            f"| {row['model']} | {seconds['plain']:.2f} | {seconds['ours']:.2f} | {ratios[0]} "
            f"| {memory['plain']:.0f} | {memory['ours']:.0f} | {ratios[1]} | {row['difference']:.0e} |"
        )
    return "\n".join(lines)


def page(rows: list[dict[str, Any]], size: str, rounds: int) -> str:
    height, width = size.split("x")
    return f"""# A training step of each risk model

`python benchmarks/risk_models.py --rounds {rounds} --size {size}`: forward and backward, {height} x {width} pixels,
one sample, float32, train mode, one CPU thread, torch {torch.__version__.split("+")[0]}. Plain is the same model
written down step by step (`benchmarks/baselines`): each image through the encoder on its own, attention weights formed,
LMV-Net's registration network inside autograd. Both sides have the same weights and give the same risks in eval mode
(last column, `compat = "reference"`). CPU seconds: the best of {STEPS} steps in each of {rounds} processes. MiB: the
peak of a step above the process before its forward pass, gradients included. In brackets the range of the ratio over
the rounds.

{table(rows)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="processes per model and side (default 5)")
    parser.add_argument("--models", nargs="+", choices=CONTESTS, default=list(CONTESTS), metavar="MODEL")
    parser.add_argument("--size", default="512x416", metavar="HxW", help="multiples of 32 (default 512x416)")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    height, width = (int(side) for side in arguments.size.split("x"))
    if arguments.one:
        torch.set_num_threads(1)
        what, model, side = arguments.one
        print({"agreement": agreement, "seconds": seconds, "memory": memory}[what](model, side, (height, width)))
        return
    rows = [compare(model, arguments.size, arguments.rounds) for model in arguments.models]
    print(json.dumps(rows) if arguments.json else table(rows))
    if set(arguments.models) == set(CONTESTS):
        RESULTS.write_text(page(rows, arguments.size, arguments.rounds), encoding="utf-8")


if __name__ == "__main__":
    main()
