"""What a story measures itself: all ways on the same pairs and on other text, and which layers carry the gain."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import build_subject, encoded
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_side, passages
from circuitlit.compare.effects import PairBed, as_dict, gain_share, plain_logits, text_kl
from circuitlit.compare.layers import changed_layers, circuit_layers, layer_nodes, top_layers
from circuitlit.compare.scored import ScoredModel
from circuitlit.compare.transplant import Transplant
from circuitlit.evaluate import paired_difference
from circuitlit.evaluate.statistics import mean_estimate, mean_of
from circuitlit.evaluate.testing import rank_p, until_clear
from circuitlit.finetune import HeldOut, behaviour_change, save_model
from circuitlit.objective import Outcome
from circuitlit.run.story.settings import most_draws, verb_settings


class Answers:
    """The base model's answers on the test pairs and on other text, with which every tuned model's are compared.

    The base model is written to `base/`, for other verbs to load.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, settings = cfg, cfg.story
        self._base = build_subject(cfg)
        assert self._base.tokenizer is not None
        save_model(self._base.model, self._base.tokenizer, run_dir() / "base")
        splits = instantiate(cfg.task.build)(tokenizer=self._base.tokenizer)
        test = encoded(cfg, splits, self._base).test
        self._pairs = HeldOut(self._base.model, test, cfg.data.eval_batch_size, self._base.device)
        wanted = verb_settings(cfg, "intervene", {})
        self._text = passages(wanted, self._base, settings.passages.count, settings.passages.length)
        self._found: dict[str, tuple[Outcome, Float[Tensor, "passage"]]] = {}

    def measure(self, name: str, folder: Path) -> dict[str, Any]:
        """One tuned model: its behaviour, and KL(base || it) on other text in nats a token."""
        tuned = load_side(self.cfg, str(folder), name)
        outcome = self._pairs.measure(tuned.model)
        moved = text_kl(self._base, self._text, lambda: tuned.unembed(tuned.hidden(self._text)))
        self._found[name] = outcome, moved
        change = behaviour_change(self._pairs.base, outcome)
        return {"held_out": change.to_dict(), "text_kl": as_dict(mean_estimate(moved, None))}

    def between(self, names: list[str]) -> dict[str, Any]:
        """The first way minus the second: accuracy, metric, and KL on other text, pair by pair."""
        (one, text), (other, other_text) = self._found[names[0]], self._found[names[1]]
        return {
            "ways": names[:2],
            "accuracy": as_dict(paired_difference(one.accuracy, other.accuracy, one.group)),
            "metric": as_dict(paired_difference(one.metric, other.metric, one.group)),
            "text_kl": as_dict(paired_difference(text, other_text, None)),
        }


def carried_by_layers(
    cfg: DictConfig, folder: Path, sides: dict[str, ScoredModel], difference: dict[str, Any]
) -> list[dict[str, Any]]:
    """Weights of some layers moved from the tuned model into the base: share of the gain, beside random layers.

    What is not moved is as if it had been put back after tuning, so 1 minus the share is what freezing it afterwards
    costs. Layers are chosen on the circuits' pairs and measured on test pairs.

    Returns:
        A row each for all layers together and for every ranking and number of layers.
    """
    base, tuned = build_subject(cfg), load_side(cfg, str(folder), "tuned")
    splits = instantiate(cfg.task.build)(tokenizer=base.tokenizer)
    test = encoded(cfg, splits, base).test
    bed = PairBed(base, test.batches(cfg.data.eval_batch_size, order=test.spread(cfg.story.pairs)))
    ids = passages(verb_settings(cfg, "intervene", {}), base, cfg.story.passages.count, cfg.story.passages.length)
    goal = bed.measure(lambda batch: plain_logits(tuned, batch))
    move = Transplant(base, tuned)

    def moved(layers: list[int]) -> tuple[Outcome, float]:
        with move.weights(layer_nodes(base.graph, layers)) as copy:
            kl = text_kl(base, ids, lambda: copy.unembed(copy.hidden(ids)))
            return bed.measure(lambda batch: plain_logits(copy, batch)), float(kl.mean())

    n_layers = base.graph.n_layers
    rankings = _rankings(sides, difference, n_layers)
    rows = [{"ranking": "all", "n_layers": n_layers, **_row(bed, goal, moved, list(range(n_layers)))}]
    sizes = sorted({min(number, n_layers) for number in cfg.story.layers})
    most = most_draws(cfg)
    for size in sizes:
        own = {name: _row(bed, goal, moved, top_layers(order, size)) for name, order in rankings.items()}
        draws = random.Random(f"layers/{cfg.seed}/{size}")
        sets = (sorted(draws.sample(range(n_layers), size)) for _ in range(most))
        chance = until_clear(
            [row["gain_share"]["value"] for row in own.values()],
            (_row(bed, goal, moved, layers) for layers in sets),
            lambda one: [one["gain_share"]["value"]] * len(rankings),
        )
        shares = [row["gain_share"]["value"] for row in chance if row["gain_share"]["value"] is not None]
        beside = {
            "random": as_dict(mean_of(shares)) if shares else None,
            "random_text_kl": as_dict(mean_of([row["text_kl"] for row in chance])),
        }
        for name, row in own.items():
            share = row["gain_share"]["value"]
            p = None if share is None or not shares else rank_p(share, shares)
            rows.append({"ranking": name, "n_layers": size, **row, **beside, "rank_p": p, "draws": len(chance)})
    return rows


def _row(
    bed: PairBed, goal: Outcome, moved: Callable[[list[int]], tuple[Outcome, float]], layers: list[int]
) -> dict[str, Any]:
    outcome, kl = moved(layers)
    share = as_dict(gain_share(bed.full, goal, outcome))
    accuracy = as_dict(mean_estimate(outcome.accuracy, outcome.group))
    return {"layers": layers, "gain_share": share, "accuracy": accuracy, "text_kl": kl}


def _rankings(
    sides: dict[str, ScoredModel], difference: dict[str, Any], n_layers: int
) -> dict[str, Float[Tensor, "layer"]]:
    base, tuned = (sides[name].resampled.circuit for name in ("base", "tuned"))
    energy = difference["weights"]["distribution"]["layer"]["share"]
    return {
        "circuit difference": changed_layers(base, tuned),
        "base circuit": circuit_layers(base),
        "weight change": torch.tensor([energy.get(str(layer), 0.0) for layer in range(n_layers)], dtype=torch.float64),
    }
