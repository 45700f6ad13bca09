"""Circuits of one behaviour under several prompts: what they share, and each of them under every prompt.

Source: the case study of Edge Pruning (arXiv 2406.16778) section 5, instruction and few-shot circuits of CodeLlama.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.discover.workbench import Workbench
from circuitlit.errors import UserError
from circuitlit.evaluate import TestBed, random_circuit, summarise
from circuitlit.evaluate.behaviour import Behaviour
from circuitlit.evaluate.find import ask
from circuitlit.evaluate.found import FAILED, OK, SMOKE, UNMEASURABLE
from circuitlit.evaluate.overlap import TESTS, shared_by_pairs
from circuitlit.evaluate.overlap_figures import SharedFigures
from circuitlit.evaluate.summary import Summary
from circuitlit.evaluate.testing import LEVEL, above_all, enough_draws, rank_p, with_holm
from circuitlit.evaluate.verdict import Bars, held_out
from circuitlit.graph import Circuit
from circuitlit.progress import phase
from circuitlit.result import Result
from circuitlit.surroundings import products_at

Kept = Bool[Tensor, "copies edge"]
Find = Callable[[str, Workbench], Circuit | None]  # from a prompt's name; None in a process that is done then
CORRUPTED = "corrupted run"


@dataclass(frozen=True)
class UnderPrompts:
    """A circuit, or what circuits are compared with, on the held-out pairs of every prompt.

    Attributes:
        circuit: its name: that of a prompt, "intersection", "union", or what it is.
        n_edges: that it keeps.
        on: what it does, by prompt.
    """

    circuit: str
    n_edges: int
    on: dict[str, Summary]


@dataclass(frozen=True)
class BesideRandom:
    """A prompt's circuit beside random ones of its size, on the same held-out pairs of its prompt.

    Attributes:
        n_pairs: some of every sentence.
        kl, random_kl: KL(full || circuit) in nats, of the circuit and of the random ones' mean.
        draws: random circuits.
        rank_p, p_holm: rank of the circuit among them, and the same corrected for all claims of the result.
    """

    n_pairs: int
    kl: float
    random_kl: float
    draws: int
    rank_p: float
    p_holm: float | None = None


@dataclass(frozen=True, kw_only=True)
class PromptPair(SharedFigures):
    """What the circuits of two prompts share.

    Attributes:
        of: their names.
        shared: edges that both keep.
    """

    of: list[str]
    shared: int


@dataclass(frozen=True, kw_only=True, repr=False)
class PromptComparison(Result):
    """What `compare_prompts` found.

    Attributes:
        status: "OK"; "FAILED" where a circuit misses its bar or the model does not do a task; "NOT MEASURABLE" where
            pairs or random circuits are too few to judge by; or "SMOKE TEST". `reason` says why it is not OK.
        model, ablation, seed: what was searched, and how.
        tuned: True where the model was tuned because it could not do a task.
        untuned_behaviour: what it could do before, by prompt.
        behaviour: what it can do, by prompt, on the pairs that a circuit is chosen on.
        tasks: the prompts; this and the rest are empty where the model does not do a task.
        n_pairs: held-out pairs, by prompt.
        n_edges_total: of the graph.
        circuits: full model, circuits, what they share and have together, random ones, corrupted run.
        chance: each prompt's circuit beside random ones.
        overlap: every two circuits.
    """

    schema: ClassVar[str] = "prompt_comparison"
    file: ClassVar[str] = "prompts.json"

    status: str
    reason: str | None
    model: str
    ablation: str
    seed: int
    tuned: bool
    untuned_behaviour: dict[str, Behaviour] | None
    behaviour: dict[str, Behaviour]
    tasks: list[str] = field(default_factory=list)
    n_pairs: dict[str, int] = field(default_factory=dict)
    n_edges_total: int
    circuits: list[UnderPrompts] = field(default_factory=list)
    chance: dict[str, BesideRandom] = field(default_factory=dict)
    overlap: list[PromptPair] = field(default_factory=list)

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row a circuit and prompt."""
        for own in self.circuits:
            for name, found in own.on.items():
                values = {key: getattr(found, key).value for key in ("kl", "accuracy", "exact_match")}
                yield {"circuit": own.circuit, "n_edges": own.n_edges, "prompt": name, **values}


@checks_arguments
def compare_prompts(
    benches: Mapping[str, Workbench],
    circuits: Mapping[str, Circuit] | Find,
    *,
    draws: int | None = None,
    bars: Bars | None = None,
    min_accuracy: Mapping[str, float] | None = None,
    behaviour: Mapping[str, Behaviour] | None = None,
    untuned: Mapping[str, Behaviour] | None = None,
    seed: int = 0,
) -> PromptComparison | None:
    """Run every prompt's circuit under every prompt, beside random ones, and compare the circuits.

    Args:
        benches: one model with the pairs of at least two prompts.
        circuits: of every prompt; or what finds them, which is not called where the model does not do a task.
        draws: random circuits of each size; None takes as many as significance needs.
        bars: all but the random circuits' number and the attributions' pairs are used.
        min_accuracy: by prompt, the share of right answers below which the model does not do the task.
        behaviour: of the model under each prompt, if it has been asked already.
        untuned: that before it was tuned, where it was.
        seed: of the random stand-ins for overlaps.

    Returns:
        None where `circuits` gave none.

    Raises:
        UserError: fewer than two prompts, one without a circuit, or masks by token role.
    """
    if len(benches) < 2:
        raise UserError("benches must hold at least two prompts: one behaviour asked for in several ways")
    first, bars = next(iter(benches.values())), bars or Bars()
    if first.layout.roles:
        raise UserError("benches have masks by token role, and roles differ between prompts; build them without")
    if isinstance(circuits, Mapping) and (lacking := next((name for name in benches if name not in circuits), None)):
        raise UserError(f"circuits has none for {lacking}; give one for every prompt")
    behaviour = behaviour or {name: ask(bench, aloud=False)[0] for name, bench in benches.items()}
    verdicts = (behaviour[name].verdict((min_accuracy or {}).get(name, 0.0)) for name in benches)
    reason, found = next((why for why in verdicts if why), None), None
    status = FAILED
    if reason is None:
        made = _circuits(benches, circuits)
        if made is None:
            return None
        with phase("evaluation", "Every circuit under every prompt"), products_at("highest"):
            found = with_holm(_compared(benches, made, draws, bars, seed))
        status, reason = _verdict(found, bars)
    return PromptComparison(
        status=status,
        reason=reason,
        model=first.subject.name,
        ablation=first.references.kind,
        seed=seed,
        tuned=untuned is not None,
        untuned_behaviour=None if untuned is None else dict(untuned),
        behaviour=dict(behaviour),
        n_edges_total=first.subject.graph.n_edges,
        **found or {},
    )


def _circuits(benches: Mapping[str, Workbench], circuits: Mapping[str, Circuit] | Find) -> dict[str, Circuit] | None:
    if isinstance(circuits, Mapping):
        return {name: circuits[name] for name in benches}
    made = {}
    for name, bench in benches.items():
        with phase(f"circuit_{name}", f"Training the masks of {name}"):
            circuit = circuits(name, bench)
        if circuit is None:
            return None
        made[name] = circuit
    return made


def _compared(
    benches: Mapping[str, Workbench], circuits: dict[str, Circuit], draws: int | None, bars: Bars, seed: int
) -> dict[str, Any]:
    """All circuits, what they share and what they have together, under all prompts; and their overlaps."""
    kept = {name: circuit.kept for name, circuit in circuits.items()}
    sets: dict[str, Kept] = {**kept, "intersection": reduce(torch.logical_and, kept.values())}
    sets["union"] = reduce(torch.logical_or, kept.values())
    sizes = sorted({circuit.n_edges for circuit in circuits.values()})
    # Each page claims what every two circuits share, and that every circuit is better than random ones.
    draws = draws or enough_draws(TESTS * len(kept) * (len(kept) - 1) // 2 + len(kept))
    columns, pairs, chance = {}, {}, {}
    for name, bench in benches.items():  # one after the other: the references of all held-out pairs are large
        bed = held_out(bench)
        pairs[name] = len(bed.full.kl)
        columns[name], chance[name] = _column(bed, sets, sizes, name, draws, bars.control_pairs)
        del bed
    total = next(iter(circuits.values())).graph.n_edges
    edges = [total, *(int(chosen.sum()) for chosen in sets.values()), *sizes, 0]
    labels = ["full model", *sets, *(f"random, mean of {draws}" for _ in sizes), CORRUPTED]
    return {
        "tasks": list(benches),
        "n_pairs": pairs,
        "circuits": [
            UnderPrompts(label, number, dict(zip(columns, row, strict=True)))
            for label, number, *row in zip(labels, edges, *columns.values(), strict=True)
        ],
        "chance": chance,
        "overlap": [
            PromptPair(of=[one, two], shared=int((kept[one] & kept[two]).sum()), **vars(shared.figures()))
            for (one, two), shared in shared_by_pairs(circuits, seed, others=len(circuits)).items()
        ],
    }


def _column(
    bed: TestBed, sets: Mapping[str, Kept], sizes: list[int], own: str, draws: int, control_pairs: int
) -> tuple[list[Summary], BesideRandom]:
    """Full model, circuits, random circuits and corrupted run under one prompt; its own circuit beside random ones.

    Random circuits are measured on some pairs of every sentence, and the own circuit is compared on the same ones.
    """
    few = min(max(control_pairs, len(bed.full.group.unique())), len(bed.full.kl))
    found = {name: bed.run(kept) for name, kept in sets.items()}
    random = {
        size: [bed.run(random_circuit(bed.model.graph, size, seed), few) for seed in range(draws)] for size in sizes
    }
    kl, *others = (float(one.head(few).kl.mean()) for one in (found[own], *random[int(sets[own].sum())]))
    p = rank_p(-kl, [-other for other in others])
    groups = [[bed.full], *([outcome] for outcome in found.values()), *random.values(), [bed.corrupted]]
    summaries = [summarise(outcomes, bed.full, bed.corrupted) for outcomes in groups]
    return summaries, BesideRandom(few, kl, sum(others) / len(others), draws, p)


def _verdict(found: Mapping[str, Any], bars: Bars) -> tuple[str, str | None]:
    """Status, and which circuit misses its bar under its own prompt, or cannot be judged."""
    if bars.smoke:
        return SMOKE, "a run this short shows that everything works and says nothing about the model"
    few = next((name for name, number in found["n_pairs"].items() if number < bars.least_pairs), None)
    if few is not None:
        number = found["n_pairs"][few]
        return UNMEASURABLE, f"{number} test pairs of {few} are too few to judge by; take at least {bars.least_pairs}"
    circuits, unsure = {row.circuit: row.on for row in found["circuits"]}, None
    for name, beside in found["chance"].items():
        kl, worst = (circuits[label][name].kl.value for label in (name, CORRUPTED))
        if kl > bars.max_kl_share * worst:
            return FAILED, f"the circuit of {name} has a KL of {kl:.3f} nats, the corrupted run {worst:.3f}"
        if beside.p_holm >= LEVEL and above_all(beside.rank_p, beside.draws):
            unsure = f"{beside.draws} random circuits are too few to say whether that of {name} is better than chance"
        elif beside.p_holm >= LEVEL:
            return FAILED, (
                f"the circuit of {name} is not better than {beside.draws} random ones beyond chance "
                f"(p = {beside.p_holm:.2g})"
            )
    return (UNMEASURABLE, unsure) if unsure else (OK, None)
