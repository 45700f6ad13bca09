"""The frozen model under study: where it comes from, how it is built, what its writers put out."""

from circuitlit.model.anatomy import Anatomy, BlockParts
from circuitlit.model.families import anatomy_of, graph_of
from circuitlit.model.linear import unwrap
from circuitlit.model.logits import take_positions
from circuitlit.model.record import Reads, Recording, record, record_reads, replace_writers
from circuitlit.model.subject import Subject

__all__ = [
    "Anatomy",
    "BlockParts",
    "Reads",
    "Recording",
    "Subject",
    "anatomy_of",
    "graph_of",
    "record",
    "record_reads",
    "replace_writers",
    "take_positions",
    "unwrap",
]
