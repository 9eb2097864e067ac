"""`medtrain doctor`."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

PACKAGES = ("torch", "torchvision", "kornia", "accelerate", "safetensors", "pydantic", "pluggy", "rich")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(as_json: bool) -> int:
    """Show what this machine has and whether it will do; exit code 1 when it will not."""
    facts = examine()
    if as_json:
        click.echo(json.dumps(facts))
    else:
        for name, value in facts.items():
            if name != "problems":
                click.echo(f"{name:16} {value}")
        for problem in facts["problems"]:
            click.echo(f"PROBLEM          {problem}")
        if not facts["problems"]:
            click.echo("No problem found.")
    return 1 if facts["problems"] else 0


def examine() -> dict[str, Any]:
    """Facts about the machine, and `problems` in words."""
    import torch
    from medtrain.data.cache import cache_dir

    from medtrain_cli import catalog

    problems = []
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            problems.append(f"{name} is not installed; pip install --force-reinstall medtrain")
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        problems.append(f"{folder}: cannot be written ({error}); set MEDTRAIN_CACHE to a folder that can")
    found = catalog.probe()
    problems += [f"plugin {row.name}: {row.error}" for row in found if row.status != "ok"]
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < 2:
        problems.append(f"only {free:.1f} GB are free here; a run of a large model writes more")
    return {
        "python": sys.version.split()[0],
        "packages": packages,
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "free_gb": round(free, 1),
        "cache": str(folder),
        "plugins": [row.name for row in found],
        "problems": problems,
    }
