"""LoRA's ranks by layer: from circuits, a gradient probe, uniform, at random, and AdaLoRA, at equal parameters."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from jaxtyping import Float
from lightning import seed_everything
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import attribute, build_subject, build_workbench, plain, provenance
from circuitlit.cli.checks import run_dir, writing_to
from circuitlit.cli.configs import composed
from circuitlit.cli.kept import read_kept
from circuitlit.cli.resume import TUNING, trained_with
from circuitlit.cli.sides import load_side
from circuitlit.compare.layers import changed_layers, circuit_layers
from circuitlit.errors import UserError
from circuitlit.evaluate.statistics import mean_estimate
from circuitlit.files import write_json
from circuitlit.finetune import examples_of_task
from circuitlit.finetune.guided_ranks import gradient_probe, rank_patterns, spread_ranks
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.progress import CONSOLE, Clock
from circuitlit.report.guided import print_guided, write_guided
from circuitlit.run import tune
from circuitlit.run.story.settings import circuit_task
from circuitlit.store import fingerprint

WAYS = ("uniform", "circuit_difference", "base_circuit", "gradient_probe", "random_layers", "adalora")
TOLERANCE = 0.01  # share by which trainable parameters may differ


def run(cfg: DictConfig) -> dict[str, Any]:
    """Tune every way with every seed, and write `guided.json` and a page.

    Raises:
        UserError: a setting that cannot be used.
    """
    _check(cfg)
    settings, clock = cfg.guided, Clock()
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in settings.ways}
    ranks: dict[str, list[int]] = {}
    for seed in settings.seeds:
        with clock.phase(f"seed{seed}", f"Seed {seed}: {len(settings.ways)} ways"):
            for name in settings.ways:
                if name not in ("adalora", "random_layers") and name not in ranks:
                    ranks[name] = _ranks(cfg, name)
                rows[name].append(_tuned(cfg, name, seed, ranks))
    base = build_subject(cfg)
    result = {
        "task": cfg.task.name,
        "model": cfg.model.name,
        "score": cfg.tune.score,
        "steps": cfg.tune.steps,
        "settings": plain(settings),
        "ranks": ranks,
        "ways": {name: _summary(cfg, rows, name) for name in settings.ways},
        **clock.times(),
        "provenance": provenance(cfg, base),
    }
    write_json(run_dir() / "guided.json", result)
    page = write_guided(run_dir())
    print_guided(result, CONSOLE)
    for path in (run_dir() / "guided.json", page):
        CONSOLE.print(f"{path}", highlight=False, soft_wrap=True)
    return result


def _check(cfg: DictConfig) -> None:
    ways = list(cfg.guided.ways)
    unknown = [name for name in ways if name not in WAYS]
    if unknown or ways[:1] != ["uniform"] or len(set(ways)) < len(ways):
        raise UserError(f"guided.ways={ways} must begin with uniform and name each of {', '.join(WAYS)} at most once")
    if "random_layers" in ways and "base_circuit" not in ways:
        raise UserError("guided.ways: random_layers shuffles the ranks of base_circuit; name that, too")
    if cfg.adapter.build is None or cfg.tune.data:
        raise UserError("guided needs adapter=lora and a task with corrupted prompts (no tune.data)")
    if cfg.guided.rank < 2 or not len(cfg.guided.seeds):
        raise UserError("guided.rank must be at least 2 (every layer keeps rank 1), and there must be a seed")


def _ranks(cfg: DictConfig, name: str) -> list[int]:
    """Ranks of each layer, the same for all seeds."""
    base, mean = build_subject(cfg), cfg.guided.rank
    if name == "uniform":
        return [mean] * base.graph.n_layers
    if name == "gradient_probe":
        return spread_ranks(_probe(cfg, base), mean)
    circuit = _circuit(cfg, base)
    if name == "base_circuit":
        return spread_ranks(circuit_layers(circuit), mean)
    tuned = load_side(cfg, str(run_dir() / f"uniform-seed{cfg.guided.seeds[0]}"), "tuned")
    return spread_ranks(changed_layers(circuit, _circuit(cfg, tuned)), mean)


def _circuit(cfg: DictConfig, subject: Subject) -> Circuit:
    """The circuit of edges scored on validation pairs."""
    own = cfg.copy()
    own.task = circuit_task(cfg.task, cfg.guided.circuit_pairs, 1)
    seed_everything(cfg.seed, verbose=False)
    bench = build_workbench(own, subject)
    return bench.cut(attribute(own, bench))


def _probe(cfg: DictConfig, base: Subject) -> Float[Tensor, "layer"]:
    assert base.tokenizer is not None
    train = examples_of_task(instantiate(cfg.task.build)(tokenizer=base.tokenizer), base.tokenizer)["train"]
    size = cfg.data.batch_size
    places = range(0, min(len(train), size * cfg.guided.probe_batches), size)
    seed_everything(cfg.seed, verbose=False)
    build = {**plain(cfg.adapter.build), "r": cfg.guided.rank}
    config = instantiate(build, _convert_="all")(base.model, cfg.tune.steps)
    return gradient_probe(base, (train.collate(range(p, min(p + size, len(train)))) for p in places), config)


def _tuned(cfg: DictConfig, name: str, seed: int, ranks: dict[str, list[int]]) -> dict[str, Any]:
    """One way with one seed, unless it is there already: its parameters, ranks and answers, pair by pair."""
    folder, rank = run_dir() / f"{name}-seed{seed}", cfg.guided.rank
    if name == "adalora":
        own = composed(
            "adapter=adalora", f"adapter.build.init_r={rank}", f"adapter.build.target_r={max(1, 2 * rank // 3)}"
        )
        chosen = None
    else:
        own = cfg.copy()
        chosen = list(ranks["base_circuit"] if name == "random_layers" else ranks[name])
        if name == "random_layers":
            random.Random(f"layers/{seed}").shuffle(chosen)
        scale = cfg.adapter.build.alpha / cfg.adapter.build.r
        pattern, alphas = rank_patterns(build_subject(cfg), chosen, scale)
        own.adapter.build.r, own.adapter.build.alpha = rank, scale * rank
        own.adapter.build.rank_pattern, own.adapter.build.alpha_pattern = pattern, alphas
    own.seed = seed
    settings = fingerprint(trained_with(own, TUNING))
    known = _known(folder, settings)
    if known is None:
        with writing_to(folder):
            result = tune.run(own)
        found = {"ranks": chosen, "n_trained": result.n_parameters_trained, "settings": settings}
        write_json(folder / "guided.json", found)
        known = _known(folder, settings)
    assert known is not None
    return known


def _known(folder: Path, settings: str) -> dict[str, Any] | None:
    """What a finished run left, if it was of these settings."""
    own, answers = (read_kept(folder / name) for name in ("guided.json", "held_out.json"))
    return {**own, **answers} if answers and own.get("settings") == settings else None


def _summary(cfg: DictConfig, rows: dict[str, list[dict[str, Any]]], name: str) -> dict[str, Any]:
    """Mean score, and the paired difference to uniform ranks and to random layers; pairs and seeds are resampled."""
    score, own = cfg.tune.score, rows[name]
    trained, reference = own[0]["n_trained"], rows["uniform"][0]["n_trained"]
    if name != "adalora" and abs(trained - reference) > TOLERANCE * reference:
        raise UserError(
            f"{name} trains {trained:,} parameters, uniform {reference:,}; the adapted modules differ by layer"
        )
    values = torch.tensor([row[score] for row in own], dtype=torch.float64)
    groups = torch.tensor(own[0]["group"])
    beside = {other: torch.tensor([row[score] for row in rows[other]]).double() for other in rows}
    against = {
        other: mean_estimate(values - beside[other], groups).to_dict()
        for other in ("uniform", "random_layers")
        if other in rows
    }
    against.pop(name, None)
    by_seed = values.mean(1).tolist()
    return {
        "n_trained": trained,
        "of_uniform": trained / reference,
        "score": mean_estimate(values, groups).to_dict(),
        "minus": against,
    } | {
        "by_seed": by_seed,
        "ranks": [row["ranks"] for row in own] if name == "random_layers" else own[0]["ranks"],
    }
