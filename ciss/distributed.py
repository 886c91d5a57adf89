"""Several processes that do one job together, one on each GPU: who is who, and what they exchange.

A process is one of several where torchrun's environment variables say so, whether torchrun set
them or ``launch`` here. Everywhere else the functions below do what a single process needs.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
log = logging.getLogger("ciss")

#: signals that ask to stop
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
#: what torchrun tells each process
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: longest wait for the others: one may read a large file or write one while they do not
_TIMEOUT = timedelta(hours=1)
#: seconds after a process has failed at which the others, if they still run, get a signal
_GRACE = ((5, signal.SIGTERM), (60, signal.SIGKILL))
_PR_SET_PDEATHSIG = 1

_store: dist.Store | None = None
_launcher: int | None = None


def _variable(name: str, default: int) -> int:
    """A number of torchrun's; ``default`` unless all of them are there."""
    return int(os.environ[name]) if all(key in os.environ for key in _VARIABLES) else default


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else _variable("RANK", 0)


def local_rank() -> int:
    """Number of this process on its machine, hence of its GPU."""
    return _variable("LOCAL_RANK", 0)


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else _variable("WORLD_SIZE", 1)


def local_size() -> int:
    """Number of processes on this machine."""
    return _variable("LOCAL_WORLD_SIZE", 1)


def several() -> bool:
    """Tell whether this process is one of several."""
    return size() > 1


def is_main() -> bool:
    """Tell whether this is the process that writes files; one is, always."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the other processes, if there are any; tensors may then be exchanged.

    Tensors on a GPU go over NCCL, those on the CPU over gloo.
    """
    global _store, _launcher
    if not several() or dist.is_initialized():
        return
    if sys.platform == "linux":
        # Nobody would notice a process whose launcher is gone: it leaves too, and saves first.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    _launcher = os.getppid()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    _store, _, _ = next(iter(dist.rendezvous("env://", timeout=_TIMEOUT)))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=_store,
        rank=rank(),
        world_size=size(),
        timeout=_TIMEOUT,
    )


def stop() -> None:
    """Take leave of the other processes, once the work is done."""
    if dist.is_initialized():
        dist.destroy_process_group()


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor over all processes: the same, in every bit, in each of them."""
    if not several():
        return tensor
    tensor = tensor.detach().clone()
    dist.all_reduce(tensor)
    return tensor


def largest(value: float) -> float:
    """The largest of the processes' values; a GPU is not waited for."""
    if not several():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return float(tensor)


def gathered(value: T) -> list[T]:
    """The values of all processes, in their order; anything that can be pickled."""
    if not several():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all processes are here; a GPU is not waited for."""
    largest(0.0)


def main_first(action: Callable[[], T]) -> T:
    """Do something in the main process before the others do it."""
    if is_main():
        result = action()
        wait()
        return result
    wait()
    return action()


def leave(status: int, report: Callable[[], None]) -> NoReturn:
    """End a process that cannot go on; ``report`` says why, in the first process that fails.

    The others fail because it did, or for the same reason.
    """
    if not several():
        report()
        sys.exit(status)
    if _first_to_fail():
        report()
    logging.shutdown()
    sys.stderr.flush()
    # Without taking leave: NCCL would wait for processes that do not answer any more.
    os._exit(status)


def _first_to_fail() -> bool:
    if _store is None:
        return True
    if os.getppid() != _launcher:  # which keeps the store
        return is_main()
    return _store.add("failures", 1) == 1


def is_lost_connection(error: BaseException) -> bool:
    """Tell whether an error means that another process has ended."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )


def is_launched() -> bool:
    """Tell whether something has started this process as one of several already."""
    return _variable("WORLD_SIZE", 1) > 1


def launch(processes: int, command: Sequence[str]) -> int:
    """Run ``command`` in several processes of this machine; return the status to leave with.

    It does what ``torchrun --standalone --nproc-per-node`` does, from within a script, and
    differs where work would be lost: SIGUSR1 is passed on like SIGTERM and SIGINT, processes that
    are asked to stop have all the time they need to save, and a job that ends well in spite of a
    signal counts as such.
    """
    # Port 0: any that is free.
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    children: list[subprocess.Popen[bytes]] = []
    with _passing_on(children) as came:
        for number in range(processes):
            place = {
                "RANK": str(number),
                "LOCAL_RANK": str(number),
                "WORLD_SIZE": str(processes),
                "LOCAL_WORLD_SIZE": str(processes),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": str(store.port),
                # As torchrun: the store is here and not in the first process.
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            children.append(subprocess.Popen(command, env=os.environ | place))
            for signalled in came:  # before there was this process
                children[-1].send_signal(signalled)
        return _end_of(children)


@contextmanager
def _passing_on(children: Sequence[subprocess.Popen[bytes]]) -> Iterator[Sequence[int]]:
    """Pass signals on to ``children``; yields those that came, for children yet to be started."""
    came: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        for child in children:
            child.send_signal(number)

    with stop_signals_to(pass_on):
        yield came


@contextmanager
def stop_signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Within the block, each of ``STOP_SIGNALS`` calls ``handler``."""
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _end_of(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, the others must end soon."""
    failed_at: float | None = None
    to_send = list(_GRACE)
    ended_here: set[int] = set()
    while any(child.poll() is None for child in children):
        if failed_at is None and any(child.returncode for child in children):
            failed_at = time.monotonic()
        if failed_at is not None and to_send and time.monotonic() > failed_at + to_send[0][0]:
            _, death = to_send.pop(0)
            for child in children:
                if child.poll() is None:
                    ended_here.add(child.pid)
                    child.send_signal(death)
        time.sleep(0.05)
    for number, child in enumerate(children, start=1):
        if child.returncode < 0 and child.pid not in ended_here:
            name = signal.Signals(-child.returncode).name
            log.error("error: process %d of %d was ended by %s", number, len(children), name)
    return max(child.returncode if child.returncode >= 0 else 1 for child in children)
