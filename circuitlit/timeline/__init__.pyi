# What timeline/__init__.py offers, each imported when it is first used.
from .labels import Signals
from .segment import Segmentation, segment
from .snapshots import Snapshots
from .stages import Boundary, Stage, Timeline, find_stages

__all__ = [
    "Boundary",
    "Segmentation",
    "Signals",
    "Snapshots",
    "Stage",
    "Timeline",
    "find_stages",
    "segment",
]
