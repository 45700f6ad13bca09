"""What single heads do: scores, the IOI algorithm, and whether ablating them does what their role says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Bool, Float, Int
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import build_subject, plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import Groups
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws, with_holm
from circuitlit.graph import Circuit
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
from circuitlit.heads.causal import Behaviour, metric_of_pairs, repeat_loss
from circuitlit.heads.effects import head_writers
from circuitlit.heads.places import NAMES
from circuitlit.heads.repeats import front_token
from circuitlit.heads.roles import Head, head_name, heads_of, mark, top_heads
from circuitlit.heads.text import read_passages, sample_passages, write_passages
from circuitlit.heads.year_check import year_check
from circuitlit.masked.ablation import KINDS
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock, watched
from circuitlit.report.heads_figure import write_heads_page
from circuitlit.report.heads_table import print_heads
from circuitlit.tasks import Pairs, PairsModule

SCORES = ("repeats", "successor", "copying", "direct_effect", "copy_suppression")
REPEATED = ("induction", "previous_token", "duplicate_token")  # checked by the loss on repeated tokens
ON_TASK = {  # checked by the task's metric; the effect that ranks them
    "name_mover": "direct_effect",
    "negative_name_mover": "direct_effect",
    "copy_suppression": "direct_effect",
    "s_inhibition": "effect_on_name_movers",
}


@dataclass
class _Bench:
    """What the scores are computed on."""

    subject: Subject
    bed: PatchBed
    test: PatchBed
    places: list[NamePlaces]
    circuit: Circuit | None
    role_names: tuple[str, ...] = ()
    repeats: Int[Tensor, "batch pos"] | None = None
    passages: Int[Tensor, "passage pos"] | None = None
    scores: dict[str, Float[Tensor, "layer head"]] = field(default_factory=dict)

    @property
    def pool(self) -> Bool[Tensor, "layer head"] | None:
        """Heads of the circuit, None for all."""
        return None if self.circuit is None else heads_in_circuit(self.circuit)


def run(cfg: DictConfig) -> dict[str, Any]:
    """Compute the scores of `heads.scores` and write them, their figure and the causal checks into the run directory.

    Raises:
        UserError: a setting, file or model that cannot be used.
    """
    _check(cfg)
    seed_everything(cfg.seed, verbose=False)
    torch.set_float32_matmul_precision("highest")
    clock = Clock()
    with clock.phase("load", f"Loading {cfg.model.name} and the pairs of task {cfg.task.name}"):
        bench = _bench(cfg)
    with clock.phase("scores", f"Scoring {bench.bed.graph.n_layers * bench.bed.graph.n_heads} heads"):
        _score(cfg, bench)
    algorithm = None
    if bench.places and cfg.heads.algorithm.run:
        with clock.phase("algorithm", "Looking for the IOI algorithm by path patching"):
            algorithm = _algorithm(cfg, bench)
            bench.scores |= algorithm.grids
    checks: dict[str, CausalCheck] = {}
    if cfg.heads.causal.run:
        with clock.phase("causal", "Ablating the heads of each role, and random sets"):
            checks = _causal(cfg, bench, algorithm)
    scores = HeadScores(bench.bed.graph, bench.scores, _details(cfg, bench, algorithm, checks) | clock.times())
    scores.save(run_dir())
    page = write_heads_page(run_dir(), scores)
    print_heads(scores, cfg.heads.top, CONSOLE)
    for path in (run_dir() / "heads.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return {"status": "OK", **scores.details}


def _check(cfg: DictConfig) -> None:
    settings = cfg.heads
    choices: list[tuple[str, list[str], Sequence[str]]] = [
        ("scores", list(settings.scores), SCORES),
        ("causal.roles", list(settings.causal.roles), (*REPEATED, *ON_TASK)),
        ("causal.ablation", [settings.causal.ablation], KINDS),
        ("algorithm.parts", [settings.algorithm.parts], ("B", "C", "D")),
    ]
    for name, values, allowed in choices:
        unknown = [value for value in values if value not in allowed]
        if unknown:
            raise UserError(f"heads.{name}: '{unknown[0]}' is unknown; choose from {', '.join(allowed)}")
    draws = settings.causal.draws
    counts = [("pairs", settings.pairs), ("top", settings.top), *([] if draws is None else [("causal.draws", draws)])]
    for name, value in counts:
        if not isinstance(value, int) or value < 1:
            raise UserError(f"heads.{name}={value} is not a whole number of at least 1")
    if cfg.text is not None and not Path(cfg.text).is_file():
        raise UserError(f"text={cfg.text} does not exist; give a file of passages, or leave it out to sample them")


def _bench(cfg: DictConfig) -> _Bench:
    circuit = None if cfg.heads.circuit is None else Circuit.load(cfg.heads.circuit)
    subject = build_subject(cfg)
    graph = Heads(subject).graph  # refuses models whose heads have no scores
    if circuit is not None and circuit.graph != graph:
        raise UserError(f"heads.circuit={cfg.heads.circuit} is of another model; choose a circuit of {cfg.model.name}")
    if 2 * cfg.heads.top > graph.n_layers * graph.n_heads:
        raise UserError(f"heads.top={cfg.heads.top} is more than half of the model's heads; lower it")
    splits: Pairs = instantiate(cfg.task.build)(tokenizer=subject.tokenizer)
    assert subject.tokenizer is not None
    data = PairsModule(splits, subject.tokenizer, cfg.data.eval_batch_size, cfg.seed)
    bed, test = _beds(cfg, subject, data)
    named = set(NAMES) <= set(splits.role_names)
    places = [NamePlaces.of(batch, splits.role_names) for batch in bed.batches] if named else []
    return _Bench(subject, bed, test, places, circuit, tuple(splits.role_names))


def _beds(cfg: DictConfig, subject: Subject, data: PairsModule) -> tuple[PatchBed, PatchBed]:
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
    size, most = cfg.data.eval_batch_size, cfg.heads.pairs
    return (
        PatchBed.build(subject, (choose or data.test).batches(size, order=chosen[:most])),
        PatchBed.build(subject, data.test.batches(size, order=tested[:most])),
    )


def _score(cfg: DictConfig, bench: _Bench) -> None:
    chosen, settings, bed = set(cfg.heads.scores), cfg.heads, bench.bed
    heads = bed.heads
    ioi = bool(bench.places) and settings.algorithm.run
    if "repeats" in chosen or ioi:
        bench.repeats = _repeats(cfg, bench.subject)
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
        bench.passages = _passages(cfg, bench.subject)
    if "copy_suppression" in chosen:
        every = [(layer, head) for layer in range(2, bed.graph.n_layers) for head in range(bed.graph.n_heads)]
        assert bench.passages is not None
        bench.scores["copy_suppression"] = copy_suppression_scores(heads, bench.passages, every, watch=watched)


def _repeats(cfg: DictConfig, subject: Subject, repeats: int = 2, new: int = 0) -> Int[Tensor, "batch pos"]:
    """Random sequences, said once or twice; `new` ones are others than those that heads are chosen on."""
    settings = cfg.heads.repeats
    bos = front_token(subject.tokenizer) if settings.bos else None
    length = settings.length if repeats == 2 else 2 * settings.length
    vocabulary = subject.model.config.vocab_size
    return repeated_tokens(vocabulary, settings.sequences, length, cfg.seed + 2 - repeats + 2 * new, bos, repeats)


def _passages(cfg: DictConfig, subject: Subject) -> Int[Tensor, "passage pos"]:
    count, length = cfg.heads.passages.count, cfg.heads.passages.length
    if cfg.text is not None:
        ids = read_passages(Path(cfg.text), subject, count, length)
    else:
        ids = sample_passages(subject, count, length, cfg.seed)
    write_passages(run_dir() / "text.jsonl", subject, ids)
    return ids[: cfg.heads.passages.used].to(subject.device)


def _algorithm(cfg: DictConfig, bench: _Bench) -> Algorithm:
    settings, given = cfg.heads.algorithm, cfg.heads.thresholds
    thresholds = Thresholds(given.copying, given.copy_suppression)
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


def _causal(cfg: DictConfig, bench: _Bench, algorithm: Algorithm | None) -> dict[str, CausalCheck]:
    """Each role's heads against random ones: repeated tokens for what looks back, the task for the rest."""
    settings, graph, top = cfg.heads.causal, bench.bed.graph, cfg.heads.top
    checks: dict[str, CausalCheck] = {}

    def check(
        role: str, behaviour: Behaviour, grid: Tensor, spared: Sequence[Head] = (), groups: Groups = None
    ) -> None:
        heads = top_heads(grid, top) if role in settings.roles else []
        if graph.n_layers * graph.n_heads < len({*heads, *spared}) + 2 * len(heads):
            spared = ()  # a small model has no others
        if heads:
            draws = settings.draws or enough_draws(len(settings.roles))
            checks[role] = causal_check(behaviour, graph, heads, draws, cfg.seed, spared, watched, groups)

    if bench.repeats is not None:
        others, fresh = _repeats(cfg, bench.subject, new=1), _repeats(cfg, bench.subject, 1, new=1)
        loss = repeat_loss(bench.subject, others, fresh, cfg.heads.repeats.length, settings.ablation)
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


def _details(
    cfg: DictConfig, bench: _Bench, algorithm: Algorithm | None, checks: dict[str, CausalCheck]
) -> dict[str, object]:
    found: dict[str, object] = {
        "task": cfg.task.name,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "n_pairs": len(bench.bed.metric),
        "settings": plain(cfg.heads),
        "text": cfg.text or ("sampled from the model" if bench.passages is not None else None),
        "causal": with_holm(
            {
                role: asdict(check) | {"heads": [head_name(head) for head in check.heads]}
                for role, check in checks.items()
            }
        ),
        "provenance": provenance(cfg, bench.subject),
    }
    if algorithm is not None:
        roles = {role: [head_name(head) for head in heads] for role, heads in algorithm.roles.items()}
        found["ioi_algorithm"] = {
            "roles": roles,
            "shares": {name: asdict(share) for name, share in algorithm.shares.items()},
        }
    years = year_check(bench.bed, bench.role_names, bench.circuit, cfg.heads.causal.draws or LEAST_DRAWS, cfg.seed)
    if years is not None:
        found["greater_than"] = years
    if bench.circuit is not None:
        inside = heads_in_circuit(bench.circuit)
        scores = HeadScores(bench.bed.graph, bench.scores)
        found["circuit"] = {
            "path": cfg.heads.circuit,
            "heads": [head_name(head) for head in heads_of(inside)],
            "roles": roles_in_circuit(scores, bench.circuit, plain(cfg.heads.thresholds)),
        }
    return found
