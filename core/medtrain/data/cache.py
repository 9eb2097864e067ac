"""Where medtrain keeps what it can make again: probe results and demo data."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$MEDTRAIN_CACHE`, or the user's cache folder of the platform."""
    if given := os.environ.get("MEDTRAIN_CACHE"):
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("medtrain", appauthor=False))
