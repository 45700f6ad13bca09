"""Commands worked off side by side: so many on each GPU, the next one as soon as one has ended."""

from __future__ import annotations

import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from circuitlit.cli.ranks import end
from circuitlit.errors import FAILED, UserError
from circuitlit.progress import CONSOLE, duration
from circuitlit.store import Failure, Store


@dataclass(frozen=True)
class Job:
    """A command.

    Attributes:
        name: of its record in the store.
        command: its words.
        log: file that takes what it prints.
        known_by: settings by which a record of an earlier queue is its own.
        environment: variables on top of this process's.
    """

    name: str
    command: Sequence[str]
    log: Path
    known_by: object = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The record of a command that has ended well.

    Attributes:
        status: 0, or FAILED for a result that misses its bar.
        seconds: it took.
        device: it ran on, as in CUDA_VISIBLE_DEVICES; None for the CPU.
    """

    status: int
    seconds: float
    device: str | None


def devices() -> list[str | None]:
    """The GPUs that this process may use, as in CUDA_VISIBLE_DEVICES; [None] without any."""
    import torch

    number, listed = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    found = listed.split(",")[:number] if listed else map(str, range(number))
    return [*found] or [None]


def work_off(
    store: Store, jobs: Sequence[Job], places: Sequence[str | None], told: Callable[[Job, Ended | Failure], None]
) -> None:
    """Run commands; those with a record in the store do not run again.

    Should this process be told to end, so are the commands that run, and no other is begun.

    Args:
        store: of the records. Queues on several machines that share it share the commands.
        jobs: in the order in which they begin.
        places: the GPU of each command of those that run at once; one that is there twice has two.
        told: is called with each record, in this thread, as soon as it is there.
    """
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for place in places:
        free.put(place)
    children: list[subprocess.Popen[bytes]] = []

    def run(job: Job) -> Ended | Failure:
        place = free.get()
        try:
            return store.tried(job.name, job.known_by, Ended, lambda: _run(job, place, len(places), children))
        finally:
            free.put(place)

    with ThreadPoolExecutor(len(places)) as pool, _all_ended(pool, children):
        waiting = {pool.submit(run, job): job for job in jobs}
        for done in as_completed(waiting):
            told(waiting[done], done.result())


class Told(list[Ended | Failure]):
    """Says what has ended, and keeps it."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, job: Job, found: Ended | Failure) -> None:
        """Print a record."""
        self.append(found)
        said = found.error if isinstance(found, Failure) else duration(found.seconds)
        CONSOLE.print(f"  {self.what} {job.name}: {said}", highlight=False, soft_wrap=True)


@contextmanager
def _all_ended(pool: ThreadPoolExecutor, children: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        end(children)
        raise


def _run(job: Job, place: str | None, at_once: int, children: list[subprocess.Popen[bytes]]) -> Ended:
    """Run a command to its end.

    Raises:
        UserError: it ended badly; the message has the last line that it printed.
    """
    own = {} if place is None else {"CUDA_VISIBLE_DEVICES": place}
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with job.log.open("ab") as log:
        environment = {**threads, **os.environ, **own, **job.environment}
        child = subprocess.Popen(job.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        children.append(child)
        status = child.wait()
    if status not in (0, FAILED):
        last = [line for line in job.log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise UserError(f"ended with status {status}: {last[0] if last else 'it printed nothing'} (see {job.log})")
    return Ended(status=status, seconds=time.monotonic() - begun, device=place)
