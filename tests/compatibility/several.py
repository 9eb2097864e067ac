"""Several command lines one after another in one process: importing torch takes longer than most of them.

`several.py commands` reads a JSON list of argument lists from standard input; `several.py help` walks the tree of
commands by their `--help`. The last line of standard output is JSON. `["from_maps", RUN, GROUP, SPLIT, CHECKPOINT]`
is no command but what Python users do: open a run and evaluate it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import sys
from importlib.metadata import entry_points
from typing import Any

from medtrain.errors import MedtrainError


def run(arguments: list[str]) -> dict[str, Any]:
    output, errors = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = ["medtrain", *arguments]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            if arguments[0] == "from_maps":
                print(json.dumps(evaluated(*arguments[1:])))
            else:
                next(iter(entry_points(group="console_scripts", name="medtrain"))).load()()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except MedtrainError as error:
            code = error.exit_code
            print(error, file=sys.stderr)
    sys.argv = before
    return {"arguments": arguments, "code": code, "stdout": output.getvalue(), "stderr": errors.getvalue()}


def evaluated(path: str, group: str, split: str, checkpoint: str) -> dict[str, Any]:
    """What `Trainer.from_maps` knows of a run, and every number of an evaluation."""
    from medtrain import Trainer

    trainer = Trainer.from_maps(path)
    found = trainer.evaluate(group, split_idx=int(split), checkpoint=checkpoint or None)
    rows = {name: [str(values.dtype), list(values.shape), digest(values)] for name, values in found.rows.items()}
    return {
        "config": trainer.config.model_dump(mode="json", exclude={"plugins"}),
        "options": {name: trainer.config.options(name).model_dump(mode="json") for name in trainer.config.plugins},
        "splits": trainer.count_splits(),
        "metrics": {name: repr(value) for name, value in found.metrics.items()},
        "reasons": found.reasons,
        "details": repr(found.details),
        "rows": rows,
    }


def digest(values: Any) -> str:
    content = repr(values.tolist()).encode() if values.dtype == object else values.tobytes()
    return hashlib.sha256(content).hexdigest()


def walk(words: list[str], found: dict[str, str]) -> dict[str, str]:
    """`--help` of these words and of all commands below them."""
    text = found[" ".join(words)] = run([*words, "--help"])["stdout"]
    _, _, below = text.partition("\nCommands:\n")
    for name in re.findall(r"^  (\S+)", below, flags=re.MULTILINE):
        walk([*words, name], found)
    return found


if __name__ == "__main__":
    if sys.argv[1] == "help":
        print(json.dumps(walk([], {})))
    else:
        print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
