"""Every way in which a small sound dataset is spoilt, and what is expected then."""

from tests.data.broken import annotations, pictures  # noqa: F401 (they fill KINDS)
from tests.data.broken.kinds import IMAGE, IMAGES, KINDS, OBJECTS, Kind, write_broken

__all__ = ["IMAGE", "IMAGES", "KINDS", "OBJECTS", "Kind", "write_broken"]
