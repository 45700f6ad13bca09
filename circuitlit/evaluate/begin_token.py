"""What stands in front of prompts, and what a beginning token that the tokenizer leaves out would change."""

from __future__ import annotations

from typing import Any

import torch

from circuitlit.discover.workbench import Workbench
from circuitlit.model.limits import longest_prompt
from circuitlit.objective import Outcome
from circuitlit.progress import say
from circuitlit.tasks import EncodedPairs
from circuitlit.tasks.tokens import front_tokens

PAIRS = 32  # asked with the token and without it


def tell_front(bench: Workbench) -> None:
    """Say which tokens stand in front of prompts; where a beginning token exists and does not, accuracy with both."""
    tokenizer, pairs = bench.subject.tokenizer, bench.data.to_choose_on
    if tokenizer is None:
        return
    if front := front_tokens(tokenizer):
        say(f"in front of every prompt stands {tokenizer.decode(front)}")
    begin: Any = tokenizer.bos_token_id
    if begin is None or begin in front or any(row.clean[0] == begin for row in pairs.rows):
        return
    if max(pairs.lengths) < longest_prompt(bench.subject.model.config)[0]:
        without, led = (_accuracy(bench, some) for some in (pairs, pairs.led_by(begin)))
        say(f"no beginning token: accuracy {without:.3f}; with {tokenizer.bos_token} in front it would be {led:.3f}")


@torch.no_grad()
def _accuracy(bench: Workbench, pairs: EncodedPairs) -> float:
    right = []
    for batch in pairs.batches(bench.data.eval_batch_size, order=pairs.spread(PAIRS)):
        placed = batch.to(bench.subject.device)
        logits = bench.subject.logits(placed.clean, placed.positions)
        right.append(Outcome.of(logits, logits.float().log_softmax(-1), placed).accuracy)
    return float(torch.cat(right).mean())
