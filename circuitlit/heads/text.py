"""Passages of natural text: read from a file, or sampled from the subject itself where there is none at hand."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from circuitlit.errors import UserError
from circuitlit.model import Subject
from circuitlit.model.limits import check_length
from circuitlit.tasks.faults import BadRows, Fault
from circuitlit.tasks.tokens import front_tokens

OPENINGS = ("The", "In", "When", "A", "One", "After", "It", "This", "There", "She", "He", "They", "For", "As")


def read_passages(path: Path, subject: Subject, count: int, length: int) -> Int[Tensor, "passage pos"]:
    """The first `length` tokens of up to `count` passages: a .jsonl file with "text", or plain text by paragraphs.

    Raises:
        UserError: no such file, lines that are no such objects, or no passage of that length.
    """
    assert subject.tokenizer is not None
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f'text={path}: not readable ({error}); give a .jsonl file of {{"text": ...}} or a plain text file'
        ) from error
    texts = _texts(path, content) if path.suffix == ".jsonl" else [p for p in content.split("\n\n") if p.strip()]
    front = front_tokens(subject.tokenizer)
    rows = [[*front, *subject.tokenizer(text, add_special_tokens=False)["input_ids"]][:length] for text in texts]
    whole = [row for row in rows if len(row) == length][:count]
    if not whole:
        raise UserError(f"text={path}: no passage has {length} tokens; give longer ones or lower heads.text.length")
    return torch.tensor(whole)


def _texts(path: Path, content: str) -> list[str]:
    """What stands under "text" in each line.

    Raises:
        BadRows: lines that have no such text.
    """
    texts, faults = [], []
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if isinstance(text, str):
            texts.append(text)
        else:
            faults.append(Fault(number, f"{path}:{number}", 'no object with "text"; write {"text": "..."}'))
    if faults:
        raise BadRows(faults, len(texts) + len(faults))
    return texts


@torch.no_grad()
def sample_passages(
    subject: Subject, count: int, length: int, seed: int, rows: int = 200
) -> Int[Tensor, "passage pos"]:
    """Text that the subject writes by itself: temperature 1, from a few neutral openings, special tokens barred.

    A model's own samples follow its own predictions more closely than people's text does; give a file where that
    matters.

    Args:
        subject: the frozen model with its tokenizer.
        count: passages.
        length: tokens of each, the opening included.
        seed: equal seeds give equal passages on the same device.
        rows: passages written at once.

    Raises:
        UserError: the model does not take passages of that length.
    """
    check_length(subject.model.config, length)
    tokenizer = subject.tokenizer
    assert tokenizer is not None
    front = front_tokens(tokenizer)
    openings = [
        [*front, *tokenizer(word, add_special_tokens=False)["input_ids"]][: len(front) + 1] for word in OPENINGS
    ]
    generator = torch.Generator(subject.device).manual_seed(seed)
    barred = torch.tensor(sorted({*tokenizer.all_special_ids} - {None}), dtype=torch.long, device=subject.device)
    written = []
    for first in range(0, count, rows):
        starts = [openings[number % len(openings)] for number in range(first, min(first + rows, count))]
        ids, cache = torch.tensor(starts, device=subject.device), None
        fresh = ids
        while ids.shape[1] < length:
            out = subject.model(input_ids=fresh, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            probabilities = out.logits[:, -1].float().index_fill(1, barred, -torch.inf).softmax(-1)
            fresh = torch.multinomial(probabilities, 1, generator=generator)
            ids = torch.cat([ids, fresh], 1)
        written.append(ids)
    return torch.cat(written)


def write_passages(path: Path, subject: Subject, ids: Int[Tensor, "passage pos"]) -> None:
    """Keep passages beside a run: `{"text": ..., "ids": [...]}` a line."""
    assert subject.tokenizer is not None
    lines = [{"text": subject.tokenizer.decode(row, skip_special_tokens=True), "ids": row} for row in ids.tolist()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
