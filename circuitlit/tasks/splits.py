"""A task after its build: lists of pairs that share nothing, and the names of the token roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.tasks.faults import BadRows, Fault
from circuitlit.tasks.pair import Pair

SPLITS = ("train", "val", "test", "new_words")
OTHER = "other"
END = "end"


@dataclass(frozen=True)
class Pairs:
    """The pairs to learn from, to choose by and to report on.

    Attributes:
        name: the task's name, for tables and file names.
        train: pairs that masks and scores are learned from; may be empty.
        val: pairs that settings are chosen by; may be empty.
        test: held-out pairs that results are reported on; of tasks with sentences, new ones with the words of training.
        role_names: names of the token roles; "other" first, "end" (the last prompt token) last.
        exhaustive: True where the test holds all inputs there are.
        overlapping: True where a pair may be in several splits, as where each holds all inputs.
        new_words: held-out pairs in the test split's sentences, with words that training and validation lack; empty for
            tasks that do not tell sentences from words.
        published: what the literature measures the task by, beside what every task is measured by: "years" (all years
            of a century), "forms" (verbs in both numbers) or "two" (answer and wrong answer); empty for nothing else.
        panel: held-out pairs that this is asked on, whose continuations may have several tokens; empty takes the test
            pairs.

    Raises:
        UserError: a pair is in two splits, or only some pairs have corrupted prompts.
        ValueError: `role_names` does not begin with "other" and end with "end", or repeats a name.
    """

    name: str
    train: list[Pair]
    val: list[Pair]
    test: list[Pair]
    role_names: tuple[str, ...] = (OTHER, END)
    exhaustive: bool = False
    overlapping: bool = False
    new_words: list[Pair] = field(default_factory=list)
    published: str = ""
    panel: list[Pair] = field(default_factory=list)

    @classmethod
    @checks_arguments
    def from_list(
        cls,
        rows: Sequence[Mapping[str, Any]],
        name: str = "own",
        seed: int = 0,
        val_fraction: float = 0.2,
        test_fraction: float = 0.4,
    ) -> Pairs:
        """Pairs of your own.

        Args:
            rows: dictionaries with the keys of a line of `jsonl`: `clean`, `corrupted`, `answer`, `wrong_answer`,
                `split`, `roles`, `group`.
            name: of the task.
            seed: rows without `split` are dealt out by it.
            val_fraction, test_fraction: shares of those rows, by group; the rest is for training.

        Raises:
            UserError: rows that cannot be used, or none for the test.
        """
        from circuitlit.tasks.jsonl import dealt, pair_of  # which makes these

        entries, faults = [], []
        for number, row in enumerate(rows):
            try:
                entries.append(pair_of(dict(row), f"row {number}"))
            except UserError as error:
                faults.append(Fault(number, f"row {number}", str(error)))
        if faults:
            raise BadRows(faults, len(rows))
        return dealt(entries, name, seed, val_fraction, test_fraction)

    def first(self, n_train: int | None, n_val: int | None, n_test: int | None) -> Pairs:
        """At most so many pairs of a split, the first ones; None keeps all. `new_words` has as many as the test.

        Raises:
            UserError: a number below 0, or no test pair.
        """
        for split, number, least in (("train", n_train, 0), ("val", n_val, 0), ("test", n_test, 1)):
            if number is not None and number < least:
                raise UserError(f"task {self.name}: n_{split}={number} is below {least}; raise it")
        train, val, test, words = self.train[:n_train], self.val[:n_val], self.test[:n_test], self.new_words[:n_test]
        all_there = self.exhaustive and len(test) == len(self.test)
        return replace(self, train=train, val=val, test=test, new_words=words, exhaustive=all_there)

    def with_more_tests(self, larger: Pairs, most: int) -> Pairs:
        """The same with further test pairs of a larger draw of the task, which share nothing with training.

        Args:
            larger: whose test pairs are taken, but for those whose prompt is here already, and those whose sentence,
                fact or operands training or validation has.
            most: test pairs in all.
        """
        known = {pair.clean for split in SPLITS for pair in getattr(self, split)}
        seen = {pair.unit for pair in (*self.train, *self.val)} - {""}
        more = [pair for pair in larger.test if pair.clean not in known and pair.unit not in seen]
        return replace(self, test=[*self.test, *more][:most])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split}={len(getattr(self, split))}" for split in SPLITS)
        return f"Pairs(name={self.name!r}, {sizes})"

    def __post_init__(self) -> None:
        names = self.role_names
        if len(set(names)) != len(names) or len(names) < 2 or names[0] != OTHER or names[-1] != END:
            raise ValueError(f"role names {names} are not different names from '{OTHER}' to '{END}'")
        self._refuse_some_without_corrupted()
        home: dict[tuple[str, str | None, str], tuple[str, Pair]] = {}
        for split in SPLITS:
            for pair in getattr(self, split):
                other, twin = home.setdefault((pair.clean, pair.corrupted, pair.answer), (split, pair))
                if other != split and not self.overlapping:
                    places = f"{other} ({twin.source or twin.clean}) and in {split} ({pair.source or pair.clean})"
                    raise UserError(f"task {self.name}: the same pair is in {places}; keep it in one split")

    def _refuse_some_without_corrupted(self) -> None:
        pairs = [pair for split in SPLITS for pair in getattr(self, split)]
        without = [pair for pair in pairs if pair.corrupted is None]
        if 0 < len(without) < len(pairs):
            raise UserError(
                f"task {self.name}: {len(without)} of {len(pairs)} pairs have no corrupted prompt, the first is "
                f"{without[0].source or without[0].clean!r}; give all pairs one, or none"
            )
