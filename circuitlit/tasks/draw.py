"""Different pairs for all splits, drawn by a seed: what all generators of prompts share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from circuitlit.errors import UserError
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import Pairs

TRIES = 2000  # draws in a row without a new pair, after which there are no more to be found


@dataclass(frozen=True)
class Recipe:
    """How a task makes its pairs.

    Attributes:
        name: the task's.
        role_names: those of its pairs, from "other" to "end".
        keys: template names of each split, in the splits' order; a task without new words leaves these out.
        make: a random pair of a split and one of its templates; None where the draw does not give one (unequal token
            counts, say).
        capacity: different clean prompts that a split's templates can give; at most half of them are drawn.
        by_item: True where a pair's group is its item (a fact, say) and no sentence: no other split may have it.
    """

    name: str
    role_names: tuple[str, ...]
    keys: Mapping[str, Sequence[str]]
    make: Callable[[str, str, random.Random], Pair | None]
    capacity: Callable[[str], int]
    by_item: bool = False


def draw_splits(recipe: Recipe, counts: Sequence[int], seed: int) -> Pairs:
    """Pairs of all splits; the templates of a split take turns.

    No clean prompt occurs twice, and no prompt of a split, clean or corrupted, is a clean prompt of another one.

    Args:
        recipe: what to draw from.
        counts: pairs of each split in `recipe.keys`; all others stay the same when only the first number changes.
        seed: equal seeds give equal pairs.

    Raises:
        UserError: fewer pairs exist than are asked for.
    """
    taken = _Taken()
    made: dict[str, list[Pair]] = {}
    # Training pairs last: theirs is the number that is changed, and what is drawn earlier does not feel it.
    for split, count in reversed(list(zip(recipe.keys, counts, strict=True))):
        most = recipe.capacity(split) // 2
        if not 0 <= count <= most:
            raise UserError(f"task {recipe.name}: {count} pairs asked for, 0 to {most} can be made; change n_{split}")
        rng = random.Random(f"{recipe.name}/{split}/{seed}")
        made[split] = _draw(recipe, split, count, rng, taken)
        for pair in made[split]:
            taken.add(pair, recipe.by_item)
    return Pairs(
        recipe.name, made["train"], made["val"], made["test"], recipe.role_names, new_words=made.get("new_words", [])
    )


@dataclass
class _Taken:
    """What the splits drawn so far hold."""

    clean: set[str] = field(default_factory=set)
    corrupted: set[str | None] = field(default_factory=set)
    items: set[str] = field(default_factory=set)

    def add(self, pair: Pair, by_item: bool) -> None:
        self.clean.add(pair.clean)
        self.corrupted.add(pair.corrupted)
        if by_item:
            self.items.add(pair.unit)

    def touches(self, pair: Pair) -> bool:
        return (
            pair.clean in self.clean
            or pair.clean in self.corrupted
            or pair.corrupted in self.clean
            or pair.unit in self.items
        )


def _draw(recipe: Recipe, split: str, count: int, rng: random.Random, taken: _Taken) -> list[Pair]:
    """`count` pairs that share nothing with the prompts of the other splits.

    The keys take turns; one that has given all it can is left out from then on.
    """
    pairs: list[Pair] = []
    seen: set[str] = set()
    left, fruitful = list(recipe.keys[split]), set()
    failures = 0
    while len(pairs) < count:
        key = left[len(pairs) % len(left)]
        pair = recipe.make(split, key, rng)
        if pair is None or pair.clean in seen or taken.touches(pair):
            failures += 1
            if failures > TRIES and key in fruitful and len(left) > 1:
                left.remove(key)
                failures = 0
            elif failures > TRIES:
                raise UserError(
                    f"task {recipe.name}: only {len(pairs)} of {count} pairs could be made for this tokenizer; "
                    "ask for fewer, or take another model"
                )
            continue
        failures = 0
        fruitful.add(key)
        seen.add(pair.clean)
        pairs.append(pair)
    return pairs
