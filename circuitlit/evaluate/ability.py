"""Does the model do the tasks? The full model alone, on several tasks and splits, ahead of any search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.model import Subject
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.tasks import PairsModule
from circuitlit.tasks.splits import SPLITS


@dataclass(frozen=True, kw_only=True)
class TaskAbility(Behaviour):
    """The model on one split of a task; `reason` says why it is not to be searched for it."""

    task: str
    split: str
    min_accuracy: float
    reason: str | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Ability(Result):
    """What `measure_behaviour` found: a row a task and split."""

    schema: ClassVar[str] = "ability"
    file: ClassVar[str] = "behaviour.json"

    model: str
    splits: list[TaskAbility]

    def to_dict(self) -> dict[str, Any]:
        """Plain types; the rows are called so in the file."""
        content = super().to_dict()
        return {**content, "rows": content.pop("splits")}

    @classmethod
    def from_dict(cls, content: dict[str, Any], source: str = "this") -> Ability:
        """As `Result.from_dict`."""
        return super().from_dict({**content, "splits": content.get("rows")}, source)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a task and split."""
        for row in self.splits:
            facts = {"task": row.task, "split": row.split, "n_pairs": row.n_pairs}
            yield facts | {"accuracy": row.accuracy.value, "metric": row.metric.value, "reason": row.reason}


@checks_arguments
def measure_behaviour(
    subject: Subject,
    tasks: Mapping[str, PairsModule],
    *,
    splits: Sequence[str] = ("train", "test", "new_words"),
    pairs: int = 200,
    min_accuracy: Mapping[str, float] | None = None,
) -> Ability:
    """Measure the full model on every task.

    Args:
        subject: the model.
        tasks: encoded pairs by the task's name.
        splits: those that the task has; also "val".
        pairs: most of each split, of as many of its sentences as possible.
        min_accuracy: share of right answers that each task asks for before it is searched; 0 where none is given.

    Raises:
        UserError: an unknown split, or no pairs in any.
    """
    wrong = [split for split in splits if split not in SPLITS]
    if wrong or not splits:
        raise UserError(f"behaviour.splits={list(splits)} are not some of {', '.join(SPLITS)}")
    rows = []
    for name, data in tasks.items():
        with phase(name, f"Asking it {name}"):
            least = (min_accuracy or {}).get(name, 0.0)
            for split in splits:
                own = getattr(data, split)
                order = sorted(own.spread(pairs), key=own.lengths.__getitem__)
                if order:
                    found = Behaviour.measure(subject, own.batches(data.eval_batch_size, order=order))
                    measured = {field.name: getattr(found, field.name) for field in fields(found)}
                    facts = {"task": name, "split": split, "min_accuracy": least, "reason": found.verdict(least)}
                    rows.append(TaskAbility(**measured, **facts))
    if not rows:
        raise UserError(f"behaviour.splits={list(splits)}: no task has pairs in any of them; name others")
    return Ability(model=subject.name, splits=rows)
