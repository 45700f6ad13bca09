"""What single heads do: scores, the IOI algorithm, and whether ablating them does what their role says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitlit.arguments import checks_arguments
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import Groups
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws, with_holm
from circuitlit.graph import Circuit
from circuitlit.graph.nodes import node_name
from circuitlit.heads import (
    Algorithm,
    CausalCheck,
    HeadScores,
    NamePlaces,
    PatchBed,
    Thresholds,
    causal_check,
    copy_suppression_scores,
    copying_of_pairs,
    heads_in_circuit,
    ioi_algorithm,
    path_effects,
    repeat_scores,
    repeated_tokens,
    roles_in_circuit,
    successor_lists,
    successor_scores,
)
from circuitlit.heads.attention import Heads
from circuitlit.heads.backup import Backup, find_backup
from circuitlit.heads.causal import Behaviour, metric_of_pairs, repeat_loss
from circuitlit.heads.effects import head_writers
from circuitlit.heads.head_settings import ON_TASK, REPEATED, HeadSettings
from circuitlit.heads.places import NAMES
from circuitlit.heads.repeats import front_token
from circuitlit.heads.roles import Head, heads_of, mark, top_heads
from circuitlit.heads.text import sample_passages
from circuitlit.heads.year_check import year_check
from circuitlit.model import Subject
from circuitlit.progress import phase, watched
from circuitlit.tasks import PairsModule


@dataclass
class _Bench:
    """What the scores are computed on."""

    subject: Subject
    bed: PatchBed
    test: PatchBed
    places: list[NamePlaces]
    circuit: Circuit | None
    text: Callable[[], Int[Tensor, "passage pos"]]
    source: str
    task: str
    seed: int
    role_names: tuple[str, ...] = ()
    repeats: Int[Tensor, "batch pos"] | None = None
    passages: Int[Tensor, "passage pos"] | None = None
    scores: dict[str, Float[Tensor, "layer head"]] = field(default_factory=dict)

    @property
    def pool(self) -> Bool[Tensor, "layer head"] | None:
        """Heads of the circuit, None for all."""
        return None if self.circuit is None else heads_in_circuit(self.circuit)


@checks_arguments
def score_heads(
    subject: Subject,
    data: PairsModule,
    settings: HeadSettings | None = None,
    *,
    circuit: Circuit | None = None,
    text: Callable[[], Int[Tensor, "passage pos"]] | None = None,
    source: str = "sampled from the model",
    seed: int = 0,
) -> HeadScores:
    """Score all heads, look for the IOI algorithm, and ablate the heads of each role beside random ones.

    Args:
        subject: the model.
        data: its task's pairs; heads are chosen on validation pairs and tested on test pairs.
        settings: None takes the defaults.
        circuit: roles and shares are those of its heads; None takes all heads.
        text: gives passages of other text, where they are needed; None samples them from the model.
        source: where they are from, in words.
        seed: of random tokens and random sets.

    Raises:
        UserError: a model whose heads have no scores, a circuit of another model, or too few heads or pairs.
    """
    settings, graph = settings or HeadSettings(), Heads(subject).graph
    if circuit is not None and circuit.graph != graph:
        raise UserError(f"heads.circuit={settings.circuit} is of another model; choose a circuit of {subject.name}")
    if 2 * settings.top > graph.n_layers * graph.n_heads:
        raise UserError(f"heads.top={settings.top} is more than half of the model's heads; lower it")
    bed, test = _beds(settings, subject, data)
    roles, named = data.splits.role_names, set(NAMES) <= set(data.splits.role_names)
    places = [NamePlaces.of(batch, roles) for batch in bed.batches] if named else []
    length = settings.passages
    text = text or (lambda: sample_passages(subject, length.count, length.length, seed))
    bench = _Bench(subject, bed, test, places, circuit, text, source, data.splits.name, seed, tuple(roles))
    with phase("scores", f"Scoring {graph.n_layers * graph.n_heads} heads"):
        _score(settings, bench)
    algorithm, checks = None, {}
    if bench.places and settings.algorithm.run:
        with phase("algorithm", "Looking for the IOI algorithm by path patching"):
            algorithm = _algorithm(settings, bench)
            bench.scores |= algorithm.grids
    if settings.causal.run:
        with phase("causal", "Ablating the heads of each role, and random sets"):
            checks = _causal(settings, bench, algorithm)
    backup = None
    if algorithm is not None and settings.backup.run:
        with phase("backup", "Looking for heads that take over from the name movers"):
            backup = _backup(settings, bench, algorithm)
    return HeadScores(graph, bench.scores, _details(settings, bench, algorithm, checks, backup))


def _beds(settings: HeadSettings, subject: Subject, data: PairsModule) -> tuple[PatchBed, PatchBed]:
    """Pairs that heads are chosen on, and others that they are tested on."""
    if not len(data.test):
        raise UserError(f"task {data.splits.name} has no test pairs; raise task.build.n_test or give the file some")
    choose = next((pairs for pairs in (data.val, data.train) if len(pairs)), None)
    order = data.test.spread()
    chosen = order[::2] if choose is None else choose.spread()
    tested = order[1::2] if choose is None else order
    if not tested:
        raise UserError(
            f"task {data.splits.name} has a single pair; heads are tested on others than they are chosen on"
        )
    size, most = data.eval_batch_size, settings.pairs
    return (
        PatchBed.build(subject, (choose or data.test).batches(size, order=chosen[:most])),
        PatchBed.build(subject, data.test.batches(size, order=tested[:most])),
    )


def _score(settings: HeadSettings, bench: _Bench) -> None:
    chosen, bed = set(settings.scores), bench.bed
    heads = bed.heads
    ioi = bool(bench.places) and settings.algorithm.run
    if "repeats" in chosen or ioi:
        bench.repeats = _repeats(settings, bench)
        bench.scores |= repeat_scores(heads, bench.repeats, settings.repeats.length)
    if "successor" in chosen:
        assert bench.subject.tokenizer is not None
        lists = successor_lists(bench.subject.tokenizer)
        bench.scores["successor"] = successor_scores(heads, lists)
    if "copying" in chosen or ioi:
        bench.scores |= copying_of_pairs(bench.bed, bench.places)
    if "direct_effect" in chosen and not ioi:  # the algorithm begins with it
        through_mlps, logits = settings.algorithm.through_mlps, [bed.graph.n_readers - 1]
        effects = path_effects(bed, head_writers(bed.graph), logits, through_mlps, watched)
        bench.scores["direct_effect"] = effects.grid(bed.graph)
    if "copy_suppression" in chosen or (ioi and settings.algorithm.copy_suppression):
        bench.passages = bench.text()[: settings.passages.used].to(bench.subject.device)
    if "copy_suppression" in chosen:
        every = [(layer, head) for layer in range(2, bed.graph.n_layers) for head in range(bed.graph.n_heads)]
        assert bench.passages is not None
        bench.scores["copy_suppression"] = copy_suppression_scores(heads, bench.passages, every, watch=watched)


def _repeats(settings: HeadSettings, bench: _Bench, repeats: int = 2, new: int = 0) -> Int[Tensor, "batch pos"]:
    """Random sequences, said once or twice; `new` ones are others than those that heads are chosen on."""
    own, subject = settings.repeats, bench.subject
    bos = front_token(subject.tokenizer) if own.bos else None
    length = own.length if repeats == 2 else 2 * own.length
    vocabulary = subject.model.config.vocab_size
    return repeated_tokens(vocabulary, own.sequences, length, bench.seed + 2 - repeats + 2 * new, bos, repeats)


def _algorithm(found: HeadSettings, bench: _Bench) -> Algorithm:
    settings, given = found.algorithm, found.thresholds
    thresholds = Thresholds(given["copying"], given["copy_suppression"])
    return ioi_algorithm(
        bench.bed,
        bench.places,
        bench.scores,
        bench.passages if settings.copy_suppression else None,
        bench.pool,
        thresholds,
        settings.receivers,
        settings.through_mlps,
        settings.parts,
        settings.suppressors,
        watched,
    )


def _causal(found: HeadSettings, bench: _Bench, algorithm: Algorithm | None) -> dict[str, CausalCheck]:
    """Each role's heads against random ones: repeated tokens for what looks back, the task for the rest."""
    settings, graph, top = found.causal, bench.bed.graph, found.top
    checks: dict[str, CausalCheck] = {}

    def check(
        role: str, behaviour: Behaviour, grid: Tensor, spared: Sequence[Head] = (), groups: Groups = None
    ) -> None:
        heads = top_heads(grid, top) if role in settings.roles else []
        if graph.n_layers * graph.n_heads < len({*heads, *spared}) + 2 * len(heads):
            spared = ()  # a small model has no others
        if heads:
            draws = settings.draws or enough_draws(len(settings.roles) + found.backup.run)
            checks[role] = causal_check(behaviour, graph, heads, draws, bench.seed, spared, watched, groups)

    if bench.repeats is not None:
        others, fresh = _repeats(found, bench, new=1), _repeats(found, bench, 1, new=1)
        loss = repeat_loss(bench.subject, others, fresh, found.repeats.length, settings.ablation)
        for role in REPEATED:
            check(role, loss, bench.scores[role])
    if algorithm is not None:
        metric = metric_of_pairs(bench.test, settings.ablation)
        with_role = {head for heads in algorithm.roles.values() for head in heads}
        for role, grid in ON_TASK.items():
            if algorithm.roles[role]:
                here = mark(graph, algorithm.roles[role])
                strength = torch.where(here, algorithm.grids[grid].abs(), torch.nan)
                check(role, metric, strength, sorted(with_role), bench.test.groups)
    return checks


def _backup(settings: HeadSettings, bench: _Bench, algorithm: Algorithm) -> Backup:
    """Who takes over from the name movers with the largest direct effects, on pairs that did not choose them."""
    here = mark(bench.bed.graph, algorithm.roles["name_mover"])
    strength = torch.where(here, algorithm.grids["direct_effect"].abs(), torch.nan)
    draws = settings.backup.draws or enough_draws(len(settings.causal.roles) + 1)
    return find_backup(bench.test, top_heads(strength, settings.top), draws, bench.seed, watched)


def _details(
    settings: HeadSettings,
    bench: _Bench,
    algorithm: Algorithm | None,
    checks: dict[str, CausalCheck],
    backup: Backup | None,
) -> dict[str, object]:
    named = {role: asdict(check) | {"heads": [node_name(*h) for h in check.heads]} for role, check in checks.items()}
    found: dict[str, object] = {
        "task": bench.task,
        "model": bench.subject.name,
        "seed": bench.seed,
        "n_pairs": len(bench.bed.metric),
        "settings": asdict(settings),
        "text": bench.source if bench.passages is not None else None,
        "causal": named,
    }
    if backup is not None:
        found["backup"] = asdict(backup)
    found = with_holm(found)
    if algorithm is not None:
        roles = {role: [node_name(*head) for head in heads] for role, heads in algorithm.roles.items()}
        shares = {name: asdict(share) for name, share in algorithm.shares.items()}
        found["ioi_algorithm"] = {"roles": roles, "shares": shares}
    draws = settings.causal.draws or LEAST_DRAWS
    years = year_check(bench.bed, bench.role_names, bench.circuit, draws, bench.seed)
    if years is not None:
        found["greater_than"] = years
    if bench.circuit is not None:
        scores = HeadScores(bench.bed.graph, bench.scores)
        found["circuit"] = {
            "path": settings.circuit,
            "heads": [node_name(*head) for head in heads_of(heads_in_circuit(bench.circuit))],
            "roles": roles_in_circuit(scores, bench.circuit, settings.thresholds),
        }
    return found
