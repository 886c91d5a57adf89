"""Starts scripts by forking a Python that has imported PyTorch already: a start costs milliseconds.

Reads lines ``[["script.py", "--flag", …], {fault}]`` (JSON) and answers each with the new process's
number, and later, on a line of its own, with how it ended: ``[number, status]``.
"""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Queue

REPOSITORY = Path(__file__).resolve().parent.parent
FAULTS = REPOSITORY / "tests" / "faults"
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "workflow_scripts")]


class ForkServer:
    """The server's other end."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server
        self.ended: Queue[tuple[int, int]] = Queue()
        self.started: Queue[int] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.server.stdout is not None
        for line in self.server.stdout:
            match json.loads(line):
                case [pid, status]:
                    self.ended.put((pid, status))
                case pid:
                    self.started.put(pid)

    def start(self, arguments: Sequence[object], fault: Mapping[str, object] | None = None) -> int:
        """Start a script; return the number of its process, which leads a session of its own.

        It suffers the ``fault``, if one is given (``tests/faults/sitecustomize.py``).
        """
        assert self.server.stdin is not None
        request = [[str(word) for word in arguments], dict(fault or {})]
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self.started.get(timeout=60)

    def has_ended(self) -> bool:
        """Whether the only running script has ended."""
        return not self.ended.empty()

    def wait(self, pid: int, timeout: float = 60) -> int:
        """Return the status with which the only running script ended; -N for signal N."""
        found, status = self.ended.get(timeout=timeout)
        assert found == pid
        return status


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """Within the block, a server runs."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield ForkServer(server)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=60)


def serve() -> None:
    import torch._dynamo  # noqa: F401  (optimisers import it when they are made)
    import train  # noqa: F401

    answers = threading.Lock()

    def answer(value: object) -> None:
        with answers:
            print(json.dumps(value), flush=True)

    for line in sys.stdin:
        arguments, fault = json.loads(line)
        pid = os.fork()
        if pid == 0:
            if fault:
                runpy.run_path(str(FAULTS / "sitecustomize.py"))["inject"](**fault)
            _become(*arguments)
        answer(pid)
        _, status = os.waitpid(pid, 0)
        answer([pid, os.waitstatus_to_exitcode(status)])


def _become(script: str, *arguments: str) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except BaseException:
        os._exit(70)
    os._exit(0)


if __name__ == "__main__":
    serve()
