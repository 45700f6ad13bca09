"""Tasks: pairs of prompts, from their wording to batches of token ids.

A task is a function that takes the model's tokenizer and returns `Pairs`, lists of `Pair`: a clean prompt, a corrupted
twin with as many tokens, and the answer. `encode` turns pairs into token ids and refuses what position-wise patching
cannot use; `PairsModule` serves them as dataloaders. This part knows tokenizers, not models. A new task is a new file
with one such function, and a file in conf/task/.

`encode` and the tasks have the names of their files; from this package the names mean the functions.
"""

from circuitlit.tasks.apart import apart
from circuitlit.tasks.arithmetic import arithmetic
from circuitlit.tasks.boolean import boolean
from circuitlit.tasks.chat import in_chat
from circuitlit.tasks.datamodule import PairsModule
from circuitlit.tasks.docstring import docstring
from circuitlit.tasks.encode import encode
from circuitlit.tasks.encoded import EncodedPairs
from circuitlit.tasks.gender_pronoun import gender_pronoun
from circuitlit.tasks.greater_than import greater_than
from circuitlit.tasks.induction import induction
from circuitlit.tasks.ioi import ioi, ioi_hard, ioi_single
from circuitlit.tasks.jsonl import jsonl
from circuitlit.tasks.lookup import antonym, factual, past_tense, two_hop
from circuitlit.tasks.pair import Batch, Pair
from circuitlit.tasks.splits import Pairs
from circuitlit.tasks.sva import sva
from circuitlit.tasks.tracr import tracr

__all__ = [
    "Batch",
    "EncodedPairs",
    "Pair",
    "Pairs",
    "PairsModule",
    "antonym",
    "apart",
    "arithmetic",
    "boolean",
    "docstring",
    "encode",
    "factual",
    "gender_pronoun",
    "greater_than",
    "in_chat",
    "induction",
    "ioi",
    "ioi_hard",
    "ioi_single",
    "jsonl",
    "past_tense",
    "sva",
    "tracr",
    "two_hop",
]
