"""Ctrl-C and SIGTERM: training saves a checkpoint first, everything else ends at once; a second Ctrl-C always does.

In a job of submitit's, the signal that its scheduler sends ahead of the end (SIGUSR2) takes SIGTERM's place: training
saves, and submitit queues the job again.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from omegaconf import DictConfig

from circuitlit.cli.checks import run_dir
from circuitlit.cli.mistakes import causes
from circuitlit.cli.ranks import is_writer
from circuitlit.errors import Stopped

SAME = 1.0  # seconds within which two signals are one: a terminal, a launcher and our parent may each pass it on
SOON = 0.05  # seconds until a signal that got lost comes again
KEEPING = ("study", "evolve", "trust", "rivals", "knowledge", "prompts", "guided", "finetune")  # part by part
QUEUED = "SUBMITIT_EXECUTOR" in os.environ
ENDING = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}") if QUEUED else signal.SIGTERM
SIGNALS = (signal.SIGINT, ENDING)


class _Told:
    """What this process has been told.

    Attributes:
        number: of the first signal; 0 before.
        at: when it came, on the monotonic clock.
        patient: True while somebody looks at `number` step by step.
        requeue: submitit's answer to ENDING.
    """

    number = 0
    at = 0.0
    patient = False
    requeue: Any = None


@contextmanager
def listening() -> Iterator[None]:
    """Answer signals for as long as the block runs; only a main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, hook = {number: signal.getsignal(number) for number in SIGNALS}, sys.unraisablehook

    def again(dropped: Any) -> None:
        if not isinstance(dropped.exc_value, Stopped):
            return hook(dropped)
        _Told.number = 0  # it came while Python ran a `__del__`, whose errors are dropped; let it come again
        later = threading.Timer(SOON, os.kill, (os.getpid(), dropped.exc_value.number))
        later.daemon = True
        later.start()

    _Told.number, _Told.patient, sys.unraisablehook = 0, False, again
    attend()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def attend(patient: bool = False) -> None:
    """Put our handlers in place, where Lightning puts its own; `patient` notes a signal instead of ending at once."""
    _Told.patient = patient
    if threading.current_thread() is threading.main_thread():
        if QUEUED and signal.getsignal(ENDING) is not _heard:
            _Told.requeue = signal.getsignal(ENDING)
        for number in SIGNALS:
            signal.signal(number, _heard)


def told() -> bool:
    """True once a signal has come."""
    return bool(_Told.number)


def stop(step: int) -> NoReturn:
    """End training, which is saved at a step; another process of the run may be the one that was told.

    Raises:
        Stopped: always.
    """
    _Told.patient = False
    raise Stopped(_Told.number or signal.SIGTERM, step)


def end_of_patience() -> None:
    """Training is over.

    Raises:
        Stopped: a signal came at its very end.
    """
    _Told.patient = False
    if _Told.number:
        raise Stopped(_Told.number)


def behind(error: BaseException) -> Stopped | None:
    """The order to end that an error stems from, if any: what ends may fail at clearing up after itself."""
    return next((cause for cause in causes(error) if isinstance(cause, Stopped)), None)


def requeue(stop: Stopped) -> None:
    """Let submitit queue this job again, if it was ended for that; it then ends this process."""
    if callable(_Told.requeue) and stop.number == ENDING:
        _Told.requeue(stop.number, None)


def _heard(number: int, _: Any) -> None:
    first, now = _Told.number, time.monotonic()
    if first and number == signal.SIGINT and now - _Told.at > SAME:
        os._exit(128 + number)
    if first:
        return
    _Told.number, _Told.at = number, now
    if not _Told.patient:
        raise Stopped(number)
    if is_writer():
        print("\nstopping at the end of this step; Ctrl-C once more ends at once", file=sys.stderr, flush=True)


def farewell(stop: Stopped, cfg: DictConfig, argv: list[str]) -> str:
    """One sentence: what ended a run and when, what is kept, and the command that goes on.

    Args:
        stop: how it ended.
        cfg: the run's settings.
        argv: `sys.argv` of its command.
    """
    how = "Ctrl-C" if stop.number == signal.SIGINT else "a signal"
    _, text = stop.during or ("", "")
    doing = f"while {text[:1].lower()}{text[1:]}" if text.partition(" ")[0].endswith("ing") else f"at '{text}'"
    where = f"at step {stop.step}" if stop.step is not None else doing if text else ""
    stopped = f"stopped by {how} {where}".rstrip()
    folder, alone = run_dir(), cfg.verb in ("train", "finetune") and not cfg.get("story")
    command = ["python", "-m", "circuitlit", cfg.verb]
    if alone:
        after = {"training": "training is done, the evaluation remains", "tuning": "tuning is done, its test remains"}
        remains = next((text for name, text in after.items() if name in stop.done), "all of it remains")
        kept = "saved" if stop.step is not None else "its result is kept, the page remains" if stop.result else remains
        command.append(f"resume={folder}")
    elif cfg.verb == "knowledge" and cfg.knowledge.inject is not None:
        if not any((folder / "checkpoints").glob("*.ckpt")):
            return f"{stopped}; nothing of it is kept"
        kept = "the tuning is kept"
        command.append(f"resume={folder}")
    elif cfg.verb in KEEPING:
        kept = "what is finished is kept"
        command += [word for word in argv[1:] if word != cfg.verb and not word.startswith("hydra.run.dir=")]
        command.append(f"hydra.run.dir={folder}")
    elif stop.result is None:
        return f"{stopped}; nothing of it is kept"
    elif stop.result.name != "result.json" or (folder / "report.html").exists():
        return f"{stopped}; its result is kept: {stop.result}"
    else:
        kept, command = "its result is kept, the page remains", [*command[:3], "report", f"run={folder}"]
    return f"{stopped}; {kept}; go on with: {shlex.join(command)}"
