"""Which models, tasks and settings an evolution is of, and loading one checkpoint at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig

from circuitlit.cli.build import build_subject, plain
from circuitlit.cli.callbacks import Progress
from circuitlit.cli.progress import ProgressLines
from circuitlit.errors import UserError
from circuitlit.evaluate.overlap import TESTS
from circuitlit.finetune.pretrain import Recipe, pretrain, write_tasks
from circuitlit.lock import claimed_cell
from circuitlit.model import Subject
from circuitlit.timeline.checkpoints import Checkpoint, hub_checkpoints, local_checkpoints
from circuitlit.timeline.follow import Series, one_at_a_time

FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]


def parted(series: list[Series], part: int, parts: int) -> list[Series]:
    """One of several equal shares: every `parts`-th checkpoint, counted through all series."""
    shares, seen = [], 0
    for one in series:
        own = [checkpoint for place, checkpoint in enumerate(one.checkpoints, seen) if place % parts == part]
        seen += len(one.checkpoints)
        shares.append(Series(one.name, own, one.final))
    return shares


def find_series(cfg: DictConfig) -> list[Series]:
    """The configured series; those of `pretrain` are trained first, where they are not there yet.

    Raises:
        UserError: nothing to look at.
    """
    settings = cfg.evolve
    schedule: Any = settings.schedule
    if schedule is not None and not isinstance(schedule, str):
        schedule = list(schedule)
    if cfg.get("pretrain"):
        if settings.folder:
            raise UserError("evolve.folder and pretrain are both given; keep one")
        return [Series.of(name, local_checkpoints(folder, schedule)) for name, folder in _trained(cfg)]
    if settings.folder:
        folder = Path(os.path.expanduser(settings.folder))
        found = local_checkpoints(folder, schedule, cfg.model.path, settings.tokens_per_step)
        return [Series.of(cfg.model.name, found)]
    if cfg.model.source != "hub":
        raise UserError(
            f"evolve: model={cfg.model.name} has no revisions; give a folder of checkpoints (evolve.folder=DIR) or a "
            "model of the hub with some (model=pythia_160m)"
        )
    steps = "log" if schedule is None else schedule
    found = hub_checkpoints(cfg.model.path, steps, settings.revision, settings.tokens_per_step)
    return [Series.of(cfg.model.name, found)]


def _trained(cfg: DictConfig) -> list[tuple[str, Path]]:
    """The series of `pretrain` with their folders, trained where they are not there yet.

    Of several parts each trains its own share of the series where only training is asked for, and none elsewhere.
    """
    part, parts, only_train = cfg.evolve.part, cfg.evolve.parts, not cfg.evolve.measure
    found = []
    for number, (recipe, name, folder) in enumerate(_recipes(cfg)):
        if only_train and number % parts != part:
            continue
        if not only_train and parts > 1 and not (folder / "checkpoints.json").is_file():
            raise UserError(f"{folder} holds no finished series; train first: evolve.measure=false")
        seed_everything(recipe.seed, verbose=False)
        bar = cfg.callbacks.progress_bar
        callbacks = [ProgressLines(aloud=not bar), *([Progress(refresh_rate=1)] if bar else [])]
        with claimed_cell(folder):  # other runs may want the same series
            pretrain(recipe, folder, partial(_trainer, cfg, callbacks))
        found.append((name, folder))
    return found


def _recipes(cfg: DictConfig) -> list[tuple[Recipe, str, Path]]:
    """What `pretrain` asks for, every model with every seed; the tasks' pairs are written beside."""
    settings = plain(cfg.pretrain)
    root = Path(os.path.expanduser(settings.pop("folder")))
    models, seeds = settings.pop("models"), settings.pop("seeds")
    write_tasks(root)
    made = []
    for model, seed in product(models, seeds):
        own = {**settings, **model}
        name = f"{own.pop('name')}-seed{seed}" if len(seeds) > 1 else str(own.pop("name"))
        try:
            recipe = Recipe(**own, seed=seed)
        except TypeError as error:
            raise UserError(f"pretrain: settings do not fit ({error}); see conf/experiment/emergence.yaml") from error
        made.append((recipe, name, root / name))
    return made


def _trainer(cfg: DictConfig, watchers: list[Any], callbacks: list[Any], **more: Any) -> Any:
    return instantiate(cfg.trainer, callbacks=[*callbacks, *watchers], **more, **instantiate(cfg.strategy.options))


def claims_of(cfg: DictConfig) -> int:
    """Claims of the page: what neighbours share, for each series and task, and two causal checks for each series."""
    series = len(cfg.pretrain.models) * len(cfg.pretrain.seeds) if cfg.pretrain else 1
    return series * (TESTS * len(cfg.evolve.tasks or [cfg.task]) + 2)


class Loader:
    """Loads checkpoints one at a time, while the files of the next one come from the hub."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self._pool = ThreadPoolExecutor(1)
        self._ahead: Future[None] | None = None

    @contextmanager
    def loaded(self, checkpoint: Checkpoint, coming: Checkpoint | None) -> Iterator[Subject]:
        """The checkpoint's model; it is let go at the end of the block."""
        if self._ahead is not None:
            self._ahead.exception()  # whatever went wrong is found again, and told, when that one is loaded
        if coming is not None and coming.revision is not None:
            self._ahead = self._pool.submit(_fetch, coming)
        with one_at_a_time(lambda at: build_subject(configured(self.cfg, at)), checkpoint) as subject:
            yield subject

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def configured(cfg: DictConfig, checkpoint: Checkpoint) -> DictConfig:
    """The settings with the checkpoint as the model."""
    own = cfg.copy()
    if checkpoint.adapter is not None:
        own.adapter.path = checkpoint.adapter
    else:
        own.model.source = "hub" if checkpoint.revision else "local"
        own.model.path, own.model.revision = checkpoint.path, checkpoint.revision
    return own


def _fetch(checkpoint: Checkpoint) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(checkpoint.path, revision=checkpoint.revision, allow_patterns=FILES)
