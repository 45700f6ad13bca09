"""What a model is tuned on: a prompt with the continuation to prefer and, where there is one, the one to disfavour."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.tasks import Batch, EncodedPairs, Pair, Pairs, encode
from circuitlit.tasks.encoded import Row
from circuitlit.tasks.faults import BadRows, Fault
from circuitlit.tasks.lines import object_of, read_lines
from circuitlit.tasks.tokens import front_tokens, part

SPLITS = ("train", "val", "test")
FIELDS = ("prompt", "chosen", "rejected", "split")


class Preference(NamedTuple):
    """A batch of both sides: the same prompts, followed by the chosen and by the rejected continuations."""

    chosen: Batch
    rejected: Batch | None


@dataclass(frozen=True)
class Examples:
    """One split, encoded.

    Attributes:
        chosen: prompts with the answers to say, as circuits see them.
        rejected: the same prompts with the answers not to say, row by row; None where some prompt has none.
    """

    chosen: EncodedPairs
    rejected: EncodedPairs | None

    def __len__(self) -> int:
        return len(self.chosen)

    def collate(self, indices: Sequence[int]) -> Preference:
        """Some examples as one batch."""
        rejected = None if self.rejected is None else self.rejected.collate(indices)
        return Preference(self.chosen.collate(indices), rejected)


@checks_arguments
def examples_of_task(splits: Pairs, tokenizer: PreTrainedTokenizerBase) -> dict[str, Examples]:
    """A task's pairs: the answer is chosen, the wrong answer (or a wrong choice, in turn) rejected.

    Corrupted prompts are never trained on.

    Raises:
        UserError: a pair that cannot be encoded.
    """
    made = {}
    for name in SPLITS:
        pairs: list[Pair] = getattr(splits, name)
        wrong = [_rejected(number, pair) for number, pair in enumerate(pairs)]
        mirrored = [pair for pair in wrong if pair is not None]
        made[name] = Examples(
            encode(pairs, tokenizer, splits.role_names),
            encode(mirrored, tokenizer, splits.role_names) if len(mirrored) == len(pairs) else None,
        )
    return made


def _rejected(number: int, pair: Pair) -> Pair | None:
    """The pair with its wrong answer in the place of the answer."""
    wrong = pair.wrong_answer or (pair.wrong[number % len(pair.wrong)] if pair.wrong else None)
    return replace(pair, answer=wrong, wrong_answer=None) if wrong else None


def examples_of_file(
    path: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, val_fraction: float = 0.1, test_fraction: float = 0.2
) -> dict[str, Examples]:
    """The lines of a jsonl file: `prompt`, `chosen`, and where they exist `rejected` and `split` (train, val, test).

    Args:
        path: the file.
        tokenizer: the model's.
        seed: lines without `split` are dealt out by it.
        val_fraction, test_fraction: shares of those lines that are held out.

    Raises:
        UserError: the file cannot be read, a line is malformed, or a split is empty.
    """
    rows: dict[str, list[dict[str, str]]] = {name: [] for name in SPLITS}
    home: dict[tuple[str, str], str] = {}  # a line that is there again and names no split goes to the same one
    undecided: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in _read(path):
        same = row["prompt"], row["chosen"]
        if "split" in row:
            home[same] = row["split"]
            rows[row["split"]].append(row)
        else:
            undecided.setdefault(same, []).append(row)
    dealt = [same for same in undecided if same not in home]
    random.Random(f"examples/{seed}").shuffle(dealt)
    n_val, n_test = round(val_fraction * len(dealt)), round(test_fraction * len(dealt))
    for place, same in enumerate(dealt):
        home[same] = "val" if place < n_val else "test" if place < n_val + n_test else "train"
    for same in [*dealt, *(same for same in undecided if same not in set(dealt))]:
        rows[home[same]] += undecided[same]
    for name in ("train", "test"):
        if not rows[name]:
            raise UserError(f'{path} has no line for {name}; give one "split": "{name}" or write more lines')
    front = front_tokens(tokenizer)
    return {name: _encoded(lines, tokenizer, front) for name, lines in rows.items()}


def _read(path: str) -> list[dict[str, str]]:
    rows, faults = [], []
    for number, line in enumerate(read_lines(path, "tune.data"), start=1):
        if not line.strip():
            continue
        source = f"{path}:{number}"
        try:
            rows.append({**_parsed(line), "source": source})
        except UserError as error:
            faults.append(Fault(number, source, str(error)))
    if faults:
        raise BadRows(faults, len(rows) + len(faults))
    return rows


def _parsed(line: str) -> dict[str, str]:
    row = object_of(line)
    if not {"prompt", "chosen"} <= set(row) or not set(row) <= set(FIELDS):
        raise UserError("the fields are prompt, chosen and maybe rejected, split; correct them")
    row = {name: value for name, value in row.items() if value is not None}
    if not {"prompt", "chosen"} <= set(row):
        raise UserError("prompt or chosen is null; write a text")
    if any(not isinstance(value, str) or not value.strip() for value in row.values()):
        raise UserError("every field is a text that is not empty; correct it")
    if row.get("split", "train") not in SPLITS:
        raise UserError(f"split is {row['split']!r}; it is one of {', '.join(SPLITS)}")
    return row


def _encoded(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase, front: list[int]) -> Examples:
    if not rows:
        return Examples(EncodedPairs([], ()), None)
    paired = all("rejected" in row for row in rows)
    sides = ("chosen", "rejected") if paired else ("chosen",)
    kept, mirrored, faults = [], [], []
    for number, row in enumerate(rows):
        try:
            prompt, _, (chosen, *rejected) = part(row["prompt"], {name: row[name] for name in sides}, tokenizer, front)
            kept.append(_row(prompt, chosen, *rejected))
            mirrored += [_row(prompt, other, chosen) for other in rejected]
        except UserError as error:
            faults.append(Fault(number, row["source"], str(error)))
    if faults:
        raise BadRows(faults, len(rows))
    return Examples(EncodedPairs(kept, ()), EncodedPairs(mirrored, ()) if paired else None)


def _row(prompt: list[int], answer: list[int], other: Sequence[int] = ()) -> Row:
    """An example as circuits see it, without a corrupted prompt of its own."""
    differing = [i for i, (a, b) in enumerate(zip(answer, other, strict=False)) if a != b]
    if other and not differing:
        raise UserError("chosen and rejected do not differ in any token; change one")
    ids = (*prompt, *answer[:-1])
    contrast = differing[0] if differing else 0
    wrong = other[contrast] if differing else -1
    return Row(ids, ids, tuple(answer), len(prompt) - 1, contrast, wrong, (0,) * len(ids))
