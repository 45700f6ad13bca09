"""Does a circuit hold where something changes that the behaviour should not hang on?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate.measure import TestBed
from circuitlit.evaluate.statistics import Estimate, Statistic, combined, ratio_estimate, statistic
from circuitlit.graph import Circuit
from circuitlit.objective import Outcome
from circuitlit.progress import told
from circuitlit.result import Result
from circuitlit.tasks import EncodedPairs, Pair
from circuitlit.tasks.chat import framed
from circuitlit.tasks.variants import NEUTRAL, corruptions, encode_some, longer


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One thing that is changed.

    Attributes:
        name: what is changed: "sentences" and wording, "words", "length", or "corruption: " and which.
        than: the pairs that it is compared with: "train" or "test".
        n_pairs: changed pairs.
        share: KL(model || circuit) over that of the empty circuit on them; 0 is the full model, 1 the empty circuit.
        ratio: `share` over that of the pairs that it is compared with; 1 is no loss, above 1 the circuit holds worse.
        reason: why it was not measured.
        n_sentences: of those pairs or of the ones that they are compared with, the fewer; None in older files.
    """

    name: str
    than: str
    n_pairs: int = 0
    share: Estimate | None = None
    ratio: Estimate | None = None
    reason: str | None = None
    n_sentences: int | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Generalisation(Result):
    """What `measure_generalisation` found.

    Attributes:
        task, model, method, ablation: what was measured.
        base: share on the test pairs.
        n_pairs: these.
        axes: one row a change.
    """

    schema: ClassVar[str] = "generalisation"
    file: ClassVar[str] = "generalisation.json"

    task: str
    model: str
    method: str
    ablation: str
    base: Estimate
    n_pairs: int
    axes: list[Axis]

    @property
    def worst(self) -> Axis | None:
        """The change with the largest ratio; None where none was measured."""
        known = [(one.ratio.value, place) for place, one in enumerate(self.axes) if one.ratio and one.ratio.value]
        return self.axes[max(known)[1]] if known else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a change."""
        for one in self.axes:
            values = {key: getattr(one, key) and getattr(one, key).value for key in ("share", "ratio")}
            yield {"axis": one.name, "than": one.than, "n_pairs": one.n_pairs, **values, "reason": one.reason}


@checks_arguments
def measure_generalisation(
    bench: Workbench, circuit: Circuit, *, pairs: int = 48, front: str = NEUTRAL, seed: int = 0
) -> Generalisation:
    """Compare a circuit's share of the empty circuit's KL between pairs and changed pairs.

    New sentences and words are other pairs; other corruptions and a sentence in front are the test pairs, changed.

    Args:
        bench: subject, pairs and masked model.
        circuit: its edges.
        pairs: most pairs of each kind, of as many sentences as possible.
        front: a neutral sentence, for the length.
        seed: of random words.

    Raises:
        UserError: no tokenizer to read changed prompts with.
    """
    tokenizer, data = bench.subject.tokenizer, bench.data
    if tokenizer is None:
        raise UserError("the model has no tokenizer to read changed prompts with; load it with one")
    rows = data.test.spread(pairs)
    texts = [data.splits.test[row] for row in rows]
    base = _run(bench, circuit, data.test, rows)
    behind = framed([pair.clean for pair in texts], tokenizer)
    changed = {"length": [longer(pair, front, behind) for pair in texts]}
    if bench.references.kind == "interchange":
        other = corruptions(data.splits.name, texts, tokenizer, seed)
        changed |= {f"corruption: {name}": made for name, made in other.items()}
    axes = [
        _tried(name, than, partial(_apart, bench, circuit, name, than, base, pairs))
        for name, than in (("sentences", "train"), ("words", "test"))
    ]
    for name, made in told(changed.items(), "changes", len(changed)):
        axes.append(_tried(name, "test", partial(_changed, bench, circuit, name, made, base)))
    return Generalisation(
        task=data.splits.name,
        model=bench.subject.name,
        method=circuit.scores.method,
        ablation=bench.references.kind,
        base=ratio_estimate(base[0].kl, base[1].kl, base[0].group),
        n_pairs=len(rows),
        axes=axes,
    )


Ends = tuple[Outcome, Outcome]  # the circuit's and the empty circuit's


def _run(bench: Workbench, circuit: Circuit, pairs: EncodedPairs, rows: Any) -> Ends:
    bed = TestBed.of(bench, pairs, list(rows))
    return bed.run(circuit.kept), bed.corrupted


def _tried(name: str, than: str, work: Callable[[], Axis]) -> Axis:
    """An axis; one that these pairs or this ablation do not allow says so, and the others are measured."""
    try:
        return work()
    except UserError as error:
        return Axis(name=name, than=than, reason=f"not measured: {error}")


def _changed(bench: Workbench, circuit: Circuit, name: str, made: Sequence[Pair | None], base: Ends) -> Axis:
    """The test pairs, changed, beside themselves as they were."""
    tokenizer, roles = bench.subject.tokenizer, bench.data.splits.role_names
    assert tokenizer is not None
    kept, encoded = encode_some(made, tokenizer, roles) if any(made) else ([], None)
    if encoded is None or not kept:
        return Axis(name=name, than="test", reason="not measured: no pair can be changed so")
    ours, theirs = _run(bench, circuit, encoded, range(len(kept))), [part.rows(torch.tensor(kept)) for part in base]
    return _axis(name, "test", ours, theirs, paired=True)


def _apart(bench: Workbench, circuit: Circuit, name: str, than: str, base: Ends, count: int) -> Axis:
    """Test beside training pairs, or new words beside the test."""
    other = bench.data.train if name == "sentences" else bench.data.new_words
    if not len(other):
        return Axis(name=name, than=than, reason=f"not measured: task {bench.data.splits.name} has no such pairs")
    there = _run(bench, circuit, other, other.spread(count))
    return _axis(name, than, base, there) if name == "sentences" else _axis(name, than, there, base)


def _axis(name: str, than: str, ours: Ends, theirs: Any, paired: bool = False) -> Axis:
    """The ratio's interval is that of its logarithm, so that it cannot be negative."""
    if paired:
        columns = torch.stack([one.kl for one in (*ours, *theirs)])
        found = statistic(lambda m: (m[0] / m[1]).log() - (m[2] / m[3]).log(), columns, ours[0].group)
    else:
        found = combined([(1.0, _log_share(ours, 0)), (-1.0, _log_share(theirs, 1))])
    share = ratio_estimate(ours[0].kl, ours[1].kl, ours[0].group)
    ratio = {key: None if value is None else _exp(value) for key, value in found.estimate().to_dict().items()}
    few = min(len(ends[0].group.unique()) for ends in (ours, theirs))
    count = len(ours[0].kl)
    return Axis(name=name, than=than, n_pairs=count, share=share, ratio=Estimate(**ratio), n_sentences=few)


def _log_share(ends: Ends, seed: int) -> Statistic:
    columns = torch.stack([one.kl for one in ends])
    return statistic(lambda m: (m[0] / m[1]).log(), columns, ends[0].group, seed)


def _exp(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).exp())
