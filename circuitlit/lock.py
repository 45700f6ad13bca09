"""One process at a time in a folder or on a cell, on one host or on several that share a disk.

A claim is a file that names process, host and start time and is touched every HEARTBEAT seconds. It is `filelock`'s
lease, a library that torch and huggingface_hub bring along: it knows a process number that was given away again, and
containers that share a host's name. A claim whose process is gone is taken over at once on its own host; one of another
host after LEASE seconds without a touch, by the clock of who waits, so that clocks may differ.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from circuitlit.errors import UserError

NAME = "run.lock"
LEASE, HEARTBEAT = 180.0, 20.0  # seconds; a shared disk may show a touch a minute late
LOOK = 0.1  # seconds between two looks at another process's claim


class InUse(UserError):
    """A living process holds a claim."""


@contextmanager
def claimed(path: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold a claim for as long as the block runs.

    Should this process lose its claim, because it did not touch it for so long that another one took over, it ends at
    once: two processes must not write into one folder.

    Args:
        path: of the claim's file, in a folder that exists.
        what: is claimed; the message begins with it.
        wait: True waits until a living holder has finished.

    Raises:
        InUse: a living process holds the claim.
    """

    def lost(compromise: LeaseCompromise) -> None:
        print(f"error: {what} now belongs to another process ({compromise.reason}); this one ends", file=sys.stderr)
        os._exit(1)

    lease = SoftFileLease(
        path, lease_duration=LEASE, heartbeat_interval=HEARTBEAT, on_compromise=lost, thread_local=False
    )
    touched: float | None = None
    while not _taken(lease, what):
        seen, owner = _touched(path), lease.owner
        if seen is None or owner is None:  # just given back, or not written yet
            time.sleep(LOOK)
            continue
        alive = _runs_here(owner.hostname, owner.pid) or touched not in (None, seen)
        if alive and not wait:
            ago = max(0, round(time.time() - seen))
            raise InUse(
                f"{what} is in use by process {owner.pid} on {_plain(owner.hostname)}, last heard of {ago} s ago; wait "
                "for it, or choose another folder: hydra.run.dir=DIR"
            )
        if touched is None:
            doing = "waiting for it to finish" if alive else "looking whether it still runs"
            print(f"{what} belongs to process {owner.pid} on {_plain(owner.hostname)}; {doing}", file=sys.stderr)
        touched = seen
        time.sleep(LOOK)
    try:
        yield
    finally:
        lease.release()


@contextmanager
def claimed_cell(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a part of a long analysis while the block makes it.

    Args:
        path: of the part's file.
        wait: for another process that is making it.

    Raises:
        InUse: another process is making it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with claimed(path.with_name(f"{path.name}.lock"), path.stem, wait):
        yield


def _taken(lease: SoftFileLease, what: str) -> bool:
    try:
        lease.acquire(timeout=0)
    except Timeout:
        return False
    except LeaseSettingsMismatch as error:
        raise UserError(
            f"{what} is claimed by another version of this program; when that has ended delete {lease.lock_file}"
        ) from error
    return True


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _runs_here(hostname: str, pid: int) -> bool:
    """True for a living process of this host; into other containers nobody sees, whatever these call themselves."""
    name, _, container = hostname.partition("?")
    if name != socket.gethostname():
        return False
    try:
        if container and not container.endswith(f"-{os.stat('/proc/self/ns/pid').st_ino:x}"):
            return False
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _plain(hostname: str) -> str:
    """A host's name without the mark of a container."""
    return hostname.split("?")[0]
