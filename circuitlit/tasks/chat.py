"""Prompts as messages to an assistant, by the model's own chat template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from circuitlit.errors import UserError
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import SPLITS, Pairs

log = logging.getLogger(__name__)
MARK = "<the message>"  # stands in for it while the template is filled


def chat_frame(tokenizer: PreTrainedTokenizerBase, mark: str = MARK) -> tuple[str, str]:
    """What the chat template puts ahead of a user's message and behind it, up to the answer's place; thinking is off.

    Args:
        tokenizer: the model's.
        mark: stands in for the message.

    Raises:
        UserError: there is no template, or it does not hold the message once and as it is.
    """
    if not tokenizer.chat_template:
        raise UserError("this tokenizer has no chat template; give the prompts as they are")
    message = [{"role": "user", "content": mark}]
    filled = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    before, *after = str(filled).split(mark.strip())
    if len(after) != 1:
        raise UserError("this chat template does not hold the message once and as it is; fill it yourself")
    return before, after[0]


def in_chat(pairs: Pairs, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """The pairs with both prompts as a user's message, and the answer as the first that the assistant says.

    Prompts that begin as the filled template does stay as they are. No token is put in front twice. Answers lose their
    leading space where the template ends in white space; prompts lose their last space where the template strips it.

    Args:
        pairs: of any task.
        tokenizer: the model's.

    Raises:
        UserError: no template that can be used, or answers that do not follow their prompts.
    """
    before, after = chat_frame(tokenizer)
    strips = not chat_frame(tokenizer, f"{MARK} ")[1].startswith(" ")
    lists = (*SPLITS, "panel")
    made = {name: [_framed(pair, before, after, strips) for pair in getattr(pairs, name)] for name in lists}
    spaced = sum(pair.clean[-1:].isspace() for split in SPLITS for pair in getattr(pairs, split))
    if strips and spaced:
        log.warning("the chat template strips the space at the end of %d prompts, so it is left out", spaced)
    return replace(pairs, **made)


def framed(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Characters that the chat template put ahead of all of some prompts; 0 where it was not used."""
    if not tokenizer.chat_template:
        return 0
    try:
        before = chat_frame(tokenizer)[0]
    except UserError:  # a template that `in_chat` refuses
        return 0
    return len(before) if all(text.startswith(before) for text in texts) else 0


def _framed(pair: Pair, before: str, after: str, strips: bool) -> Pair:
    if pair.in_place:
        raise UserError("these answers stand in their prompts, so no assistant says them; give the prompts as they are")
    if pair.clean.startswith(before):
        return pair

    def message(text: str) -> str:
        return f"{before}{text.rstrip() if strips else text}{after}"

    def said(text: str) -> str:
        return text.lstrip() if after[-1:].isspace() else text

    return replace(
        pair,
        clean=message(pair.clean),
        corrupted=None if pair.corrupted is None else message(pair.corrupted),
        answer=said(pair.answer),
        wrong_answer=None if pair.wrong_answer is None else said(pair.wrong_answer),
        right=tuple(map(said, pair.right)),
        wrong=tuple(map(said, pair.wrong)),
        roles=tuple((role, start + len(before), end + len(before)) for role, start, end in pair.roles),
    )
