"""What programs read: the `--json` output of every command that has it is what the previous release's was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from codes import Code, Done
from previous_runs import Runs, differences, each, plain, sets

pytestmark = [pytest.mark.compatibility, pytest.mark.timeout(900)]

# By the kind of run that lies in the folder as `finished` (with DATA, what it was trained on), command lines.
COMMANDS: dict[str, list[list[Any]]] = {
    "toy": [
        ["run", "--plugin", "toy_plugin", "--epochs", 2, "--set", "toy_plugin.dropout=0.2", "--out", "new", "--json"],
        ["run", "--plugin", "toy_plugin", "--dry-run", "--json"],
        ["resume", "finished", "--set", "optimization.num_epochs=5", "--json", "--quiet"],
        ["eval", "finished", "--json"],
        ["predict", "finished", "vectors.txt", "--json"],
        ["predict", "new", "vectors.txt", "--out", "predicted.csv", "--json"],
        ["plugins", "list", "--json"],
        ["plugins", "list", "--probe", "--json"],
        *(["plugins", "info", name, "--json"] for name in ("toy_plugin", "brain", "lmv_net", "pivot", "karsl")),
        ["plugins", "explain", "lmv_net", "toy_plugin", "--json"],
        ["plugins", "explain", "brain", "medtrain.testing:ToyTask", "--json"],
        ["runs", "list", ".", "--json"],
        ["runs", "show", "finished", "--json"],
        ["runs", "verify", "finished", "--json"],
        ["runs", "compare", "finished", "new", "--replicates", 20, "--out", "compared", "--json"],
        ["weights", "export", "finished", "--json"],
        ["weights", "export", "new", "--format", "pth", "--checkpoint", "last", "--out", "own.pth", "--json"],
        ["weights", "show", "finished", "--json"],
        ["weights", "show", "own.pth", "--json"],
        ["weights", "import", "toy_plugin", "own.pth", "--out", "own.safetensors", "--json"],
        ["export", "finished", "--format", "safetensors", "--json"],
        ["data", "split", "people.tsv", "--test", 0.25, "--folds", 2, "--stratify", "age", "--seed", 1, "--json"],
        ["doctor", "--json"],
        # Errors are JSON too.
        ["eval", "nowhere", "--json"],
        ["run", "--plugin", "toy_plugin", "--set", "optimization.learning_rat=1", "--json"],
    ],
    "brain": [["data", "check", "brain", "--data", "DATA", "--json"]],
    "pivot": [
        ["detect", "nodule", "finished", "DATA/scans/SCAN", "--out", "detected", "--json"],
        [
            *("froc", "--annotations", "DATA/scans/annotations.csv", "--candidates", "marks.csv"),
            *("--bootstrap", 20, "--out", "scored", "--json"),
        ],
        ["data", "prepare", "nodule", "--source", "DATA/scans", "--out", "prepared", "--dry-run", "--json"],
        ["data", "check", "nodule", "--manifest", "DATA/prepared/manifest.jsonl", "--json"],
    ],
    "lmv_net": [
        [
            *("benchmark", "risk", "--data", "DATA", "--preset", "demo", "--models", "oa_breacr", "--epochs", 1),
            *sets("each.image_size=[32, 32]", "each.bootstrap_replicates=10"),
            *("--out", "benchmark", "--replicates", 20, "--quiet", "--json"),
        ]
    ],
}

# Texts that are meant to differ, as they were -> as they are.
WORDING = {
    "segmentation: what the masks are, likewise": "segmentation: the masks to read, given like file_type",
    "what tells of a coming cancer in it": "sign of a later cancer in the demo's images",
    "what the network says; heatmap always": "outputs of the network; heatmap is required",
    "of a manifest dealt into folds: the one that is held out": "of a manifest with folds: the fold that is held out",
    "none: the clips tell nothing of their sign": "none: clips do not depend on their sign",
    "the fixed_radius protocol knows no irrelevant findings; those given were not used": (
        "the fixed_radius protocol has no irrelevant findings; those given were not used"
    ),
}
# Rows of `plugins explain` that the previous release did not have, and what its rows did not say of default plugins.
NEW_HOOKS = ("split_data", "prepare_model", "write_report")
NEW_DEFAULTS = {
    "on_run_start": "the report of the transfer, into the log",
    "on_epoch_start": "the end of transfer.freeze_epochs",
    "on_evaluate_end": "early stopping by [early_stopping]",
}


def meant(said: Any) -> Any:
    """What the previous release said, with the texts of today and without what is new."""
    if isinstance(said, str):
        return WORDING.get(said, said)
    if isinstance(said, list):
        return [meant(item) for item in said if not (isinstance(item, dict) and item.get("hook") in NEW_HOOKS)]
    if isinstance(said, dict):
        changed = {key: meant(value) for key, value in said.items()}
        return changed | {"default": NEW_DEFAULTS[said["hook"]]} if said.get("hook") in NEW_DEFAULTS else changed
    return said


def prepared(name: str, runs: Runs, code: Code) -> tuple[Path, list[list[str]]]:
    """A folder with the run and small inputs, and the command lines for it."""
    folder, data = runs.folder / name / f"json-{code.name}", runs.data(name)
    runs.copy_run(name, folder / "finished", resumed=True)
    (folder / "vectors.txt").write_text("0.1,0.2,0.3,0.4\n-1,0.5,2,0\n")
    people = "".join(f"sub-{n:02d}\tses-1\t{50 + n % 7}\n" for n in range(24))
    (folder / "people.tsv").write_text(f"participant_id\tsession_id\tage\n{people}")
    replace = {"DATA": str(data)}
    if name == "pivot":
        replace["SCAN"] = min(data.glob("scans/**/*.mhd")).relative_to(data / "scans").as_posix()
        header, *rows = (data / "scans" / "annotations.csv").read_text().splitlines()
        assert header.split(",")[:4] == ["seriesuid", "coordX", "coordY", "coordZ"], header
        marks = [",".join([*row.split(",")[:4], f"0.{number % 9}"]) for number, row in enumerate(rows)]
        (folder / "marks.csv").write_text("\n".join(["seriesuid,coordX,coordY,coordZ,probability", *marks]) + "\n")
    commands = []
    for command in COMMANDS[name]:
        words = [str(word) for word in command]
        for old, new in replace.items():
            words = [word.replace(old, new) for word in words]
        commands.append(words)
    return folder, commands


@pytest.mark.parametrize("name", each(list(COMMANDS)))
def test_json_outputs_are_the_same(name: str, runs: Runs, previous: Code, current: Code) -> None:
    found: list[tuple[Path, list[Done]]] = []
    for code in (previous, current):
        folder, commands = prepared(name, runs, code)
        found.append((folder, code.together(commands, folder)))
    (before, there), (now, here) = found
    for one, other in zip(there, here, strict=True):
        fails = "nowhere" in one.arguments or any("learning_rat=" in word for word in one.arguments)
        assert one.code == (2 if fails else 0), one
        assert other.code == one.code, other
        changed = differences(meant(plain(one.json(), before)), meant(plain(other.json(), now)))
        assert not changed, (other.arguments, changed)


@pytest.mark.xdist_group("help")
def test_no_command_with_json_is_left_out(previous_help: dict[str, str]) -> None:
    with_json = {words for words, text in previous_help.items() if re.search(r"^\s+--json ", text, re.MULTILINE)}
    compared = {words for words in with_json for rows in COMMANDS.values() for row in rows if starts(row, words)}
    assert len(with_json) > 20 and compared == with_json


def starts(row: list[Any], words: str) -> bool:
    return row[: len(words.split())] == words.split()
