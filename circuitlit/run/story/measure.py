"""What a story measures itself: all ways on the same pairs and on other text, and which layers carry the gain."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import build_pairs, build_subject
from circuitlit.cli.checks import run_dir
from circuitlit.cli.sides import load_side, passages
from circuitlit.compare.answers import AllAnswers, compare_answers
from circuitlit.compare.layers import changed_layers, circuit_layers
from circuitlit.compare.moved_layers import MovedLayers, move_layers
from circuitlit.compare.scored import ScoredModel
from circuitlit.finetune import save_model
from circuitlit.run.story.settings import most_draws, verb_settings


def answers(cfg: DictConfig, names: Iterable[str]) -> AllAnswers:
    """What every way's model answers; the base model is written to `base/`, for other verbs to load."""
    base = build_subject(cfg)
    assert base.tokenizer is not None
    save_model(base.model, base.tokenizer, run_dir() / "base")
    tuned = ((name, load_side(cfg, str(run_dir() / name / "tune"), name)) for name in names)
    size = cfg.story.passages
    text = passages(verb_settings(cfg, "intervene", {}), base, size.count, size.length)
    return compare_answers(base, tuned, build_pairs(cfg, base).test, cfg.data.eval_batch_size, text)


def carried_by_layers(
    cfg: DictConfig, folder: Path, sides: dict[str, ScoredModel], difference: dict[str, Any]
) -> list[MovedLayers]:
    """Layers chosen on the circuits' pairs, moved into the base and measured on test pairs."""
    base, tuned = build_subject(cfg), load_side(cfg, str(folder), "tuned")
    test, size = build_pairs(cfg, base).test, cfg.story.passages
    batches = list(test.batches(cfg.data.eval_batch_size, order=test.spread(cfg.story.pairs)))
    text = passages(verb_settings(cfg, "intervene", {}), base, size.count, size.length)
    rankings = _rankings(sides, difference, base.graph.n_layers)
    return move_layers(base, tuned, batches, text, rankings, cfg.story.layers, most_draws(cfg), cfg.seed)


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
