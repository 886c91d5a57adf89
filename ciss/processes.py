"""Sharing work among processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TypeVar

from ciss.errors import CissError

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int
) -> Generator[Result, None, None]:
    """Yield ``work(item)`` in the items' order, from ``workers`` processes, ``chunk`` at a time.

    With one worker, or so few items that one chunk holds them, this process does the work itself.
    The processes leave signals to this one and end with it, even where it is killed. Close the
    generator before its end to give up what is left. Raises what ``work`` raises, and ``CissError``
    where a process was killed.
    """
    if workers <= 1 or len(items) <= chunk:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers, initializer=_start_worker) as pool:
        results = pool.map(work, items, chunksize=chunk)
        try:
            yield from results
        except BrokenProcessPool as error:
            raise CissError(
                "a process that read or wrote images was killed, perhaps for want of memory; start "
                "again, with fewer workers (runtime.threads) if it comes back"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave signals to the parent process, and end with it even where it is killed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
