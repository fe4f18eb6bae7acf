"""Where what is made once is kept: built operators, generated data."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$DNDETR_CACHE, else dndetr under $XDG_CACHE_HOME or ~/.cache."""
    if "DNDETR_CACHE" in os.environ:
        return Path(os.environ["DNDETR_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dndetr"
