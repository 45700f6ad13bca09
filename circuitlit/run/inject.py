"""`experiment=inject_facts`: invented and contradicting facts are tuned in; reverting nodes shows which carry which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, open_dict

from circuitlit.cli.build import plain, provenance
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_base, load_side
from circuitlit.compare.effects import PairBed, as_dict, gain_share, plain_logits
from circuitlit.compare.injection import reverting_scores
from circuitlit.compare.matched import matched_nodes, mean_overlap
from circuitlit.compare.transplant import Transplant
from circuitlit.errors import UserError
from circuitlit.evaluate.similarity import spearman
from circuitlit.evaluate.statistics import combined, mean_estimate, mean_of, ratio
from circuitlit.evaluate.testing import LEAST_DRAWS, enough_draws, rank_p, until_clear, with_holm
from circuitlit.files import write_json
from circuitlit.finetune import examples_of_file
from circuitlit.model import Subject
from circuitlit.model.slices import withheld
from circuitlit.objective import Outcome
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.injection import print_injection, write_injection
from circuitlit.run.tune import run as tune
from circuitlit.tasks import EncodedPairs
from circuitlit.tasks.injected import KINDS, Fact, new_facts, revised_facts, true_facts

LEARNED = (0, 1)  # sentences that are tuned on
ASKED = 2  # the sentence that is tested


def run_injection(cfg: DictConfig) -> dict[str, Any]:
    """Tune facts in, find the nodes that carry them, and write `injection.json` and a page into the run directory.

    Raises:
        UserError: a setting that cannot be used, or too few facts that the model knows.
    """
    settings, clock = cfg.knowledge.inject, Clock()
    if settings.draws is not None and settings.draws < LEAST_DRAWS:
        raise UserError(f"knowledge.inject.draws={settings.draws} is too few random sets; take at least {LEAST_DRAWS}")
    with clock.phase("load", "Loading the model and asking it what it knows"):
        base = load_base(cfg)
        facts = _facts(cfg, base)
        path = run_dir() / "facts.jsonl"
        rows = [(fact, number) for fact in facts for number in (*LEARNED, ASKED)]
        path.write_text(
            "\n".join(json.dumps(fact.row(n, "test" if n == ASKED else "train")) for fact, n in rows) + "\n"
        )
    tuning = cfg.copy()
    with open_dict(tuning):
        tuning.tune.data = str(path)
    tuned_result = tune(tuning)
    torch.set_float32_matmul_precision("highest")  # tuning may have lowered it
    with clock.phase("nodes", "Estimating every node's part"):
        tuned = load_side(cfg, str(run_dir()), "tuned")
        pairs = _pairs(cfg, base, facts, path)
        scores = {
            kind: reverting_scores(base, tuned, list(own["train"].batches(cfg.data.eval_batch_size)))
            for kind, own in pairs.items()
        }
    with clock.phase("revert", "Reverting nodes, and random sets like them"):
        found = _reverted(cfg, base, tuned, pairs, scores)
    result = {
        "model": base.name,
        "seed": cfg.seed,
        "settings": plain(settings),
        "facts": [asdict(fact) for fact in facts],
        "tuning": {key: tuned_result[key] for key in ("status", "reason", "tune", "adapter", "steps", "held_out")},
        **found,
        **clock.times(),
        "provenance": provenance(cfg, base),
    }
    write_json(run_dir() / "injection.json", result)
    page = write_injection(run_dir())
    print_injection(result, CONSOLE)
    for file in (run_dir() / "injection.json", page):
        CONSOLE.print(f"{file}", highlight=False, soft_wrap=True)
    return result


def _facts(cfg: DictConfig, base: Subject) -> list[Fact]:
    """Invented facts, and facts that contradict what the model says on the first sentence."""
    settings = cfg.knowledge.inject
    candidates = true_facts(cfg.seed)
    if settings.only_known:
        file = run_dir() / "asked.jsonl"
        lines = [fact.row(LEARNED[0], "test") for fact in candidates]
        lines.append(candidates[0].row(LEARNED[1], "train"))  # a file needs a training line
        file.write_text("\n".join(map(json.dumps, lines)) + "\n")
        assert base.tokenizer is not None
        asked = examples_of_file(str(file), base.tokenizer)["test"].chosen
        file.unlink()
        bed = PairBed(base, asked.batches(cfg.data.eval_batch_size))
        right = bed.full.accuracy.bool().tolist()
        candidates = [fact for fact, good in zip(candidates, right, strict=True) if good]
    return new_facts(settings.new, cfg.seed) + revised_facts(candidates, settings.revised)


def _pairs(cfg: DictConfig, base: Subject, facts: list[Fact], path: Path) -> dict[str, dict[str, EncodedPairs]]:
    """The encoded prompts of each kind of fact, as tuned on and as tested."""
    assert base.tokenizer is not None
    examples, found = examples_of_file(str(path), base.tokenizer), {}
    for kind in KINDS:
        own = [place for place, fact in enumerate(facts) if fact.kind == kind]
        rows = {"train": [2 * place + n for place in own for n in range(len(LEARNED))], "test": own}
        found[kind] = {
            split: EncodedPairs([examples[split].chosen.rows[row] for row in chosen], ())
            for split, chosen in rows.items()
        }
    return found


def _reverted(
    cfg: DictConfig,
    base: Subject,
    tuned: Subject,
    pairs: dict[str, dict[str, EncodedPairs]],
    scores: dict[str, dict[str, float]],
) -> dict[str, Any]:
    """What each kind of fact loses, on the test wording, with the nodes of either kind put back."""
    settings, back = cfg.knowledge.inject, Transplant(tuned, base)
    beds = {kind: PairBed(tuned, own["test"].batches(cfg.data.eval_batch_size)) for kind, own in pairs.items()}
    before = {kind: bed.measure(lambda batch: plain_logits(base, batch)) for kind, bed in beds.items()}

    def lost(nodes: Sequence[str]) -> dict[str, Outcome]:
        with back.weights(nodes) as copy:
            return {kind: bed.measure(lambda batch: plain_logits(copy, batch)) for kind, bed in beds.items()}

    def share(kind: str, outcome: Outcome) -> Any:
        return gain_share(beds[kind].full, before[kind], outcome)

    carriers = {}
    for kind, of_nodes in scores.items():
        nodes = sorted(of_nodes, key=lambda node: -of_nodes[node])[: settings.nodes]
        after = lost(nodes)
        sets = matched_nodes(back.graph, nodes, settings.draws or enough_draws(len(KINDS) ** 2), cfg.seed)
        own = [share(on, after[on]).value for on in KINDS]
        others = until_clear(own, map(lost, sets), lambda one: [share(on, one[on]).value for on in KINDS])
        carriers[kind] = {
            "nodes": nodes,
            "withheld": withheld(back.graph, nodes),
            "overlap": mean_overlap(nodes, sets),
            "lost": {on: as_dict(share(on, after[on])) for on in KINDS},
            "specific": as_dict(_specific(kind, beds, before, after)),
            "random": {
                on: _random(share(on, after[on]).value, [share(on, o[on]).value for o in others]) for on in KINDS
            },
        }
    nodes = list(scores["new"])
    values = [torch.tensor([scores[kind][node] for node in nodes], dtype=torch.float64)[None] for kind in KINDS]
    return {
        "behaviour": {kind: _behaviour(before[kind], beds[kind].full) for kind in KINDS},
        "scores": scores,
        "correlation": spearman(*values),
        "shared_nodes": sorted(set(carriers["new"]["nodes"]) & set(carriers["revised"]["nodes"])),
        "carriers": with_holm(carriers),
    }


def _specific(kind: str, beds: dict[str, PairBed], before: dict[str, Outcome], after: dict[str, Outcome]) -> Any:
    """Share that the own kind of fact loses less the share that the other does; both kinds' facts are resampled."""
    parts = []
    for seed, on in enumerate((kind, next(other for other in KINDS if other != kind))):
        high, low, own = (outcome.metric.double() for outcome in (beds[on].full, before[on], after[on]))
        parts.append(ratio(high - own, high - low, after[on].group, seed))
    return combined([(1.0, parts[0]), (-1.0, parts[1])]).estimate()


def _random(own: float | None, others: list[float | None]) -> dict[str, Any]:
    known = [value for value in others if value is not None]
    mean = as_dict(mean_of(known)) if known else None
    return {"lost": mean, "rank_p": rank_p(own, known) if own is not None and known else None}


def _behaviour(before: Outcome, after: Outcome) -> dict[str, Any]:
    return {
        f"{name}_{when}": as_dict(mean_estimate(getattr(outcome, name), outcome.group))
        for name in ("accuracy", "metric")
        for when, outcome in (("base", before), ("tuned", after))
    }
