"""How `guided` tunes, and scores circuits and gradients, from a configuration."""

from __future__ import annotations

from functools import partial

from hydra.utils import instantiate
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from circuitlit.cli.build import attribute, build_subject, build_workbench, plain
from circuitlit.cli.checks import run_dir, writing_to
from circuitlit.cli.configs import composed
from circuitlit.cli.finish import prepare
from circuitlit.cli.kept import files_of
from circuitlit.cli.resume import TUNING, trained_with
from circuitlit.cli.sides import load_side
from circuitlit.compare.rank_patterns import RankedTuning, RankMakers
from circuitlit.finetune import examples_of_task
from circuitlit.finetune.guided_ranks import gradient_probe, rank_patterns
from circuitlit.graph import Circuit
from circuitlit.model import Subject
from circuitlit.model.anatomy import Anatomy
from circuitlit.model.contents import contents_of
from circuitlit.progress import Clock
from circuitlit.run import tune
from circuitlit.run.story.settings import circuit_task
from circuitlit.store import Store


def makers_of(cfg: DictConfig, base: Subject) -> RankMakers:
    """Makers that load the models that they need, and keep none.

    Raises:
        UserError: settings of a later way or of a subtask that cannot be, before anything is tuned.
    """
    for settings in cfg.guided.subtasks:
        composed(*settings.split())
    if "adalora" in cfg.guided.ways:
        _settings(cfg, base.anatomy, None)
    return RankMakers(
        base.graph.n_layers,
        tune=partial(_tuned, cfg, base.anatomy, contents_of(base.model)),
        circuit=partial(_circuit, cfg),
        subtask=_subtask,
        probe=partial(_probe, cfg),
    )


def _tuned(
    cfg: DictConfig, anatomy: Anatomy, contents: str, name: str, seed: int, ranks: list[int] | None
) -> RankedTuning:
    """One way with one seed, unless it is there already with these settings and contents of model and files."""
    own = _settings(cfg, anatomy, ranks)
    own.seed = seed
    folder = run_dir() / f"{name}-seed{seed}"

    def work() -> RankedTuning:
        with writing_to(folder), Clock():
            return RankedTuning.read(tune.run(own), folder, ranks)

    known = trained_with(own, TUNING, 1) | files_of({"task": plain(own.task)}) | {"contents": contents}
    return Store(folder).made("guided", known, RankedTuning, work)


def _settings(cfg: DictConfig, anatomy: Anatomy, ranks: list[int] | None) -> DictConfig:
    """Of a tuning run with these ranks; a layer's scale, alpha over rank, is always that of `adapter.build`."""
    mean = cfg.guided.rank
    if ranks is None:
        sizes = (f"adapter.build.init_r={mean}", f"adapter.build.target_r={max(1, 2 * mean // 3)}")
        rate = cfg.guided.adalora_lr
        return composed("adapter=adalora", *sizes, *([] if rate is None else [f"adapter.lr={rate}"]))
    own, scale = cfg.copy(), cfg.adapter.build.alpha / cfg.adapter.build.r
    own.adapter.build.r, own.adapter.build.alpha = mean, scale * mean
    own.adapter.build.rank_pattern, own.adapter.build.alpha_pattern = rank_patterns(anatomy, ranks, scale)
    return own


def _circuit(cfg: DictConfig, which: str, pairs: int) -> Circuit:
    """The circuit of edges scored on validation pairs."""
    own = cfg.copy()
    own.task = circuit_task(cfg.task, pairs, 1)
    prepare(cfg)
    uniform = run_dir() / f"uniform-seed{cfg.guided.seeds[0]}"
    bench = build_workbench(own, build_subject(cfg) if which == "base" else load_side(cfg, str(uniform), which))
    return bench.cut(attribute(own, bench))


def _subtask(settings: str, pairs: int) -> Circuit:
    """The base model's circuit of a part of the task, on validation pairs, too."""
    return _circuit(composed(*settings.split()), "base", pairs)


def _probe(cfg: DictConfig, rank: int, batches: int) -> Float[Tensor, "layer"]:
    """Each layer's share of the gradient on some training batches, of as many sentences as possible."""
    base, size = build_subject(cfg), cfg.data.batch_size
    assert base.tokenizer is not None
    train = examples_of_task(instantiate(cfg.task.build)(tokenizer=base.tokenizer), base.tokenizer)["train"]
    order = train.chosen.spread(size * batches)
    prepare(cfg)
    config = instantiate({**plain(cfg.adapter.build), "r": rank}, _convert_="all")(base.model, cfg.tune.steps)
    taken = (train.collate(order[place : place + size]) for place in range(0, len(order), size))
    return gradient_probe(base, taken, config)
