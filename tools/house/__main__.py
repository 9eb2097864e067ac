"""`python -m house [--report] [FOLDER]`: print every broken rule, one a line; exit code 1 if there is one.

With `--report` the exit code is 0. FOLDER is the repository, by default the current folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from house import circles, core_names, dynamic, face, settings, shapes, sizes, tree
from house.violation import Violation

RULES = (core_names, face, circles, dynamic, sizes, shapes)


def violations(folder: Path) -> list[Violation]:
    modules = tree.read(folder)
    configured = settings.read(folder)
    return sorted({violation for rule in RULES for violation in rule.check(modules, configured)})


def main() -> int:
    parser = argparse.ArgumentParser(prog="house", description="Check the rules of docs/rules.md.")
    parser.add_argument("--report", action="store_true", help="print what breaks the rules, exit with 0")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="the repository")
    arguments = parser.parse_args()
    found = violations(arguments.folder)
    for violation in found:
        print(violation)
    print(f"{len(found)} broken rules of the house" if found else "The rules of the house hold.")
    return int(bool(found) and not arguments.report)


if __name__ == "__main__":
    raise SystemExit(main())
