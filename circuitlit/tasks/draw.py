"""Different pairs for three splits, drawn by a seed: what all generators of prompts share."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from circuitlit.errors import UserError
from circuitlit.tasks.pair import Pair
from circuitlit.tasks.splits import Splits

TRIES = 2000  # draws in a row without a new pair, after which there are no more to be found


@dataclass(frozen=True)
class Recipe:
    """How a task makes its pairs.

    Attributes:
        name: the task's.
        role_names: those of its pairs, from "other" to "end".
        make: a random pair of one template; None where the draw does not give one (unequal token counts, say).
        capacity: different clean prompts that some templates can give; at most half of them are drawn.
    """

    name: str
    role_names: tuple[str, ...]
    make: Callable[[str, random.Random], Pair | None]
    capacity: Callable[[Sequence[str]], int]


def draw_splits(
    recipe: Recipe,
    keys: tuple[Sequence[str], Sequence[str], Sequence[str]],
    counts: tuple[int, int, int],
    seed: int,
) -> Splits:
    """Pairs of all splits; the templates of a split take turns.

    No clean prompt occurs twice, and no prompt of a split, clean or corrupted, is a clean prompt of another one.

    Args:
        recipe: what to draw from.
        keys: template names of the training, validation and test split.
        counts: pairs in each; validation and test pairs stay the same when only the first number changes.
        seed: equal seeds give equal pairs.

    Raises:
        UserError: fewer pairs exist than are asked for.
    """
    clean: set[str] = set()
    corrupted: set[str] = set()
    made: dict[str, list[Pair]] = {}
    # Test first: the largest split is drawn last so that its size does not change the others.
    for split, of_split, count in reversed(list(zip(("train", "val", "test"), keys, counts, strict=True))):
        most = (recipe.capacity(of_split) - len(clean)) // 2
        if not 0 <= count <= most:
            raise UserError(
                f"task {recipe.name}: {count} pairs asked for, 0 to {max(most, 0)} can be made; "
                "change n_train or n_test"
            )
        rng = random.Random(f"{recipe.name}/{split}/{seed}")
        made[split] = _draw(recipe, of_split, count, rng, clean, corrupted)
        clean |= {pair.clean for pair in made[split]}
        corrupted |= {pair.corrupted for pair in made[split]}
    return Splits(recipe.name, made["train"], made["val"], made["test"], recipe.role_names)


def _draw(
    recipe: Recipe,
    keys: Sequence[str],
    count: int,
    rng: random.Random,
    clean: set[str],
    corrupted: set[str],
) -> list[Pair]:
    """`count` pairs that share nothing with the prompts of the other splits.

    The keys take turns; one that has given all it can is left out from then on.
    """
    pairs: list[Pair] = []
    seen: set[str] = set()
    left, fruitful = list(keys), set()
    failures = 0
    while len(pairs) < count:
        key = left[len(pairs) % len(left)]
        pair = recipe.make(key, rng)
        if pair is None or _known(pair, seen, clean, corrupted):
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


def _known(pair: Pair, seen: set[str], clean: set[str], corrupted: set[str]) -> bool:
    return any(pair.clean in prompts for prompts in (seen, clean, corrupted)) or pair.corrupted in clean
