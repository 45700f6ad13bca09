"""How circuits change: over the training of masks, or over a model's checkpoints; stages found from the data."""

from circuitlit.timeline.labels import Signals
from circuitlit.timeline.segment import Segmentation, segment
from circuitlit.timeline.snapshots import Snapshots
from circuitlit.timeline.stages import Boundary, Stage, Timeline, find_stages

__all__ = ["Boundary", "Segmentation", "Signals", "Snapshots", "Stage", "Timeline", "find_stages", "segment"]
