"""What the plugin imports, and what it does without: in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from medtrain_plugins.brain.synth import synthesize


def test_importing_the_plugin_is_light() -> None:
    code = (
        "import sys, medtrain_plugins.brain as b; b.Brain();"
        "heavy = {'torch', 'monai', 'pandas', 'nibabel', 'matplotlib', 'captum'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_small_classifier_needs_no_monai(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    synthesize(tree, 12, sessions=1, sites=1, size=16)
    code = (
        "import sys; sys.modules['monai'] = None; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from brain_runs import trained; trained(Path(sys.argv[2]), Path(sys.argv[3]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "run"), str(tree)], check=True
    )
