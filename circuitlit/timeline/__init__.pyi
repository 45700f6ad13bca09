# What timeline/__init__.py offers, each imported when it is first used.
from .agreement import TimelineAgreement, compare_timelines
from .labels import Signals
from .mask_timeline import MaskTimeline, follow_masks
from .segment import Segmentation, segment
from .snapshots import Snapshots
from .stages import Boundary, Stage, Timeline, find_stages

__all__ = [
    "Boundary",
    "MaskTimeline",
    "Segmentation",
    "Signals",
    "Snapshots",
    "Stage",
    "Timeline",
    "TimelineAgreement",
    "compare_timelines",
    "find_stages",
    "follow_masks",
    "segment",
]
