"""A task for looking at a model that was tuned on it: the pairs that tuning never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.splits import Pairs


def apart(
    tokenizer: PreTrainedTokenizerBase,
    build: Callable[..., Pairs],
    n_train: int,
    n_val: int,
    n_test: int | None = None,
) -> Pairs:
    """The task's validation pairs, dealt out anew; its held-out pairs (or the first few), its training pairs left out.

    Args:
        tokenizer: the model's.
        build: makes the task's splits.
        n_train: validation pairs that scores are learned from.
        n_val: validation pairs that circuits are chosen by.
        n_test: pairs that are kept of the test split and of that with new words; None keeps all.

    Raises:
        UserError: the task has too few validation pairs.
    """
    splits = build(tokenizer=tokenizer)
    if n_train < 1 or n_val < 1 or len(splits.val) < n_train + n_val:
        raise UserError(
            f"task {splits.name} has {len(splits.val)} validation pairs, and {n_train} + {n_val} are wanted for "
            "circuits; raise task.build.n_val"
        )
    return replace(
        splits,
        train=splits.val[:n_train],
        val=splits.val[n_train : n_train + n_val],
        test=splits.test[:n_test],
        new_words=splits.new_words[:n_test],
    )
