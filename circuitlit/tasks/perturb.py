"""Encoded pairs with something wrong in them, for asking how much of it a circuit's discovery bears."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from circuitlit.tasks.encoded import EncodedPairs, Row

NOISE = 0.2  # share of the tokens that both prompts have in common
Words = tuple[int, ...]


def perturb(pairs: EncodedPairs, kind: str, seed: int = 0) -> list[Row | None]:
    """Each pair, perturbed; None in place of one that cannot be.

    The answer stays, and so do both prompts' lengths and the roles of their tokens.

    Args:
        pairs: of one split, from which other words are taken.
        kind: "noise": a fifth of the tokens that both prompts have in common (one at least, the first one only where
            prompts begin in different ways) become tokens of other pairs, so that sentences are spoilt, and often the
            task; "mixed": the corrupted prompt is another pair's of equal length, so that the two prompts differ in
            more than the cause of the behaviour; "swapped": clean and corrupted prompt change places, so that the
            answer is the other prompt's.
        seed: of what is drawn.
    """
    make, rng = KINDS[kind](pairs.rows), random.Random(f"{kind} {seed}")
    return [make(row, rng) for row in pairs.rows]


def _noise(rows: Sequence[Row]) -> Callable[[Row, random.Random], Row | None]:
    begin = int(len({row.clean[0] for row in rows}) == 1)  # a beginning token is no word
    words = sorted({token for row in rows for token in row.clean[begin : row.end + 1]})

    def make(row: Row, rng: random.Random) -> Row | None:
        both = [place for place in range(begin, row.end + 1) if row.clean[place] == row.corrupted[place]]
        if not both or len(words) < 2:
            return None
        drawn = {}
        for place in rng.sample(both, max(1, round(NOISE * len(both)))):
            drawn[place] = rng.choice([word for word in words if word != row.clean[place]])
        return row._replace(clean=_with(row.clean, drawn), corrupted=_with(row.corrupted, drawn))

    return make


def _mixed(rows: Sequence[Row]) -> Callable[[Row, random.Random], Row | None]:
    by_end: dict[int, list[Words]] = {}
    for row in rows:
        if row.corrupted != row.clean:
            by_end.setdefault(row.end, []).append(row.corrupted[: row.end + 1])

    def make(row: Row, rng: random.Random) -> Row | None:
        own = [row.clean[: row.end + 1], row.corrupted[: row.end + 1]]
        others = [prompt for prompt in by_end.get(row.end, []) if prompt not in own]
        return row._replace(corrupted=rng.choice(others) + row.corrupted[row.end + 1 :]) if others else None

    return make


def _swapped(rows: Sequence[Row]) -> Callable[[Row, random.Random], Row | None]:
    def make(row: Row, rng: random.Random) -> Row | None:
        return None if row.clean == row.corrupted else row._replace(clean=row.corrupted, corrupted=row.clean)

    return make


def _with(tokens: Words, drawn: Mapping[int, int]) -> Words:
    return tuple(drawn.get(place, token) for place, token in enumerate(tokens))


KINDS: Mapping[str, Callable[[Sequence[Row]], Callable[[Row, random.Random], Row | None]]] = {
    "noise": _noise,
    "mixed": _mixed,
    "swapped": _swapped,
}
