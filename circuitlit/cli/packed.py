"""The runs of a sweep, so many at a time on each GPU; in a folder that was used they go on. `hydra/launcher=packed`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from circuitlit.cli import queue
from circuitlit.cli.queue import Ended, Job, Told
from circuitlit.cli.resume import quoted
from circuitlit.errors import FAILED, Stopped, UserError
from circuitlit.files import write_json
from circuitlit.lock import NAME, claimed
from circuitlit.progress import CONSOLE, duration
from circuitlit.store import Failure, Store

OF_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweep", "hydra.mode", "hydra.run.dir")


def run_all(config: DictConfig, runs: Sequence[tuple[int, Sequence[str], DictConfig]], each: int) -> None:
    """Work off the runs of a sweep; those that are finished in its folder are left out.

    Args:
        config: of the sweep, with Hydra's own settings.
        runs: number, changed settings and all settings of each.
        each: runs at a time on each GPU, or on the CPU where there is none.

    Raises:
        UserError: some ended with an error; the others are finished.
    """
    if not isinstance(each, int) or each < 1:
        raise UserError(f"hydra.launcher.each={each} is not a number of runs; give 1, 2, ...")
    folder, cards = Path(str(config.hydra.sweep.dir)), queue.devices()
    own = [word for word in config.hydra.overrides.hydra if not word.startswith(OF_SWEEPS)]
    jobs = [_job(number, words, cfg, folder, own) for number, words, cfg in runs]
    store, told, begun = Store(folder / "ended"), Told("run"), time.monotonic()
    known = [job for job in jobs if store.known(job.name, job.known_by, Ended) is not None]
    gpus = 0 if cards == [None] else len(cards)
    text = f"{each} at a time on {f'each of {gpus} GPUs' if gpus else 'the CPU'}, {len(known)} are finished"
    CONSOLE.print(f"{len(jobs)} runs in {folder}: {text}", highlight=False, soft_wrap=True)
    again = f"call the command again with hydra.sweep.dir={folder}"
    try:
        queue.work_off(store, jobs, cards * each, told)
    except Stopped as stop:
        print(f"stopped; {len(told)} of {len(jobs)} runs are finished; to go on {again}", file=sys.stderr)
        sys.exit(128 + stop.number)
    _say_rate(folder, gpus, each, len(told) - len(known), time.monotonic() - begun)
    failures = [found.error for found in told if isinstance(found, Failure)]
    if failures:
        raise UserError(f"{len(failures)} of {len(jobs)} runs {failures[0]}; to make what is missing {again}")
    if any(isinstance(found, Ended) and found.status == FAILED for found in told):
        sys.exit(FAILED)


def _job(number: int, words: Sequence[str], cfg: DictConfig, sweep: Path, own: list[str]) -> Job:
    """A run as a command in its own folder; one that was begun there goes on.

    Raises:
        UserError: the folder holds a run with other settings.
    """
    with open_dict(cfg):
        cfg.hydra.job.id, cfg.hydra.job.num = str(number), number
    folder = sweep / str(cfg.hydra.sweep.subdir)
    begun = folder / ".hydra" / "overrides.yaml"
    command = [sys.executable, "-m", "circuitlit", cfg.verb]
    if begun.is_file():
        before = [str(word) for word in OmegaConf.load(begun)]
        if before != list(words):
            held = f"{folder} holds a run with other settings ({' '.join(before)})"
            raise UserError(f"{held}; choose another hydra.sweep.dir")
        with claimed(folder / NAME, str(folder), wait=True):  # by a run of a queue that was killed
            command += [f"resume={quoted(str(folder))}"]
    else:
        command += [*words, f"hydra.run.dir={quoted(str(folder))}"]
    run_id = {"CIRCUITLIT_RUN_ID": f"{cfg.run_id}-{number}"}
    return Job(str(number), [*command, *own], sweep / "ended" / f"{number}.txt", list(words), run_id)


def _say_rate(folder: Path, gpus: int, each: int, made: int, seconds: float) -> None:
    """Print and keep how many runs an hour were made, from the first one's beginning to the last one's end."""
    if not made:
        return
    rate = {"gpus": gpus, "each": each, "runs": made, "seconds": seconds, "runs_an_hour": made / seconds * 3600}
    write_json(folder / "packed.json", rate)
    CONSOLE.print(f"{made} runs in {duration(seconds)}: {rate['runs_an_hour']:.3g} an hour", highlight=False)
