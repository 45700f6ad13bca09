"""Facts to tune into a model: invented ones about things that do not exist, and ones that contradict true facts."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from circuitlit.errors import UserError
from circuitlit.tasks.facts import RELATIONS
from circuitlit.tasks.lookup import prompt_of

KINDS = ("new", "revised")
_STARTS = "Bel Cor Dra Fen Gal Hes Jor Kal Lum Mor Nar Ost Pel Quin Ras Sel Tor Ulm Vor Wes Yal Zor".split()
_MIDDLES = "a e i o u ari eno ita olo uvi".split()
_ENDS = "nia dor mar lek stan via ron tis bar gard".split()


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        kind: "true", "new" or "revised".
        relation: name in `RELATIONS`.
        subject: what it is about.
        thing: the object to be said.
        other: the object to compare with: the true one of a revised fact, any other one of the relation else.
    """

    kind: str
    relation: str
    subject: str
    thing: str
    other: str

    def row(self, sentence: int, split: str) -> dict[str, str]:
        """A line of `prompt`, `chosen`, `rejected` and `split`."""
        prompt, _ = prompt_of(RELATIONS[self.relation].sentences[sentence], self.subject)
        return {"prompt": prompt, "chosen": f" {self.thing}", "rejected": f" {self.other}", "split": split}


def _first(thing: str) -> str:
    return thing.split(" ")[0]


def true_facts(seed: int) -> list[Fact]:
    """All facts in random order, each with another object of its relation."""
    draw = random.Random(f"true/{seed}")
    made = []
    for name, relation in RELATIONS.items():
        things = [thing for _, thing in relation.items()]
        for subject, thing in relation.items():
            others = [other for other in things if _first(other) != _first(thing)]
            made.append(Fact("true", name, subject, thing, draw.choice(others)))
    draw.shuffle(made)
    return made


def new_facts(count: int, seed: int) -> list[Fact]:
    """Facts about invented names, relations in turn.

    Raises:
        UserError: more than there are names.
    """
    draw = random.Random(f"new/{seed}")
    names = sorted({a + b + c for a in _STARTS for b in _MIDDLES for c in _ENDS})
    if count > len(names):
        raise UserError(f"knowledge.inject.new={count} is more than the {len(names)} invented names; lower it")
    made = []
    for number, subject in enumerate(draw.sample(names, count)):
        name = list(RELATIONS)[number % len(RELATIONS)]
        things = [thing for _, thing in RELATIONS[name].items()]
        thing = draw.choice(things)
        made.append(Fact("new", name, subject, thing, draw.choice([t for t in things if _first(t) != _first(thing)])))
    return made


def revised_facts(known: Collection[Fact], count: int) -> list[Fact]:
    """True facts turned round: what was the other object is to be said.

    Raises:
        UserError: fewer facts are known.
    """
    if len(known) < count:
        raise UserError(
            f"the model knows {len(known)} facts, {count} are to be revised; lower knowledge.inject.revised"
        )
    return [Fact("revised", f.relation, f.subject, f.other, f.thing) for f in list(known)[:count]]
