"""Faults at an exact place, for processes that are started with this folder in PYTHONPATH.

``CISS_FAULTS`` is a JSON list: ``do`` (kill, full, sleep) at every write of a file named ``file``
(default: any) under a path with ``inside`` in it, from number ``write`` on (default: 1). With
``once``, a path, only the first process that comes so far suffers it, and leaves that path as a
sign.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def inject(
    do: str,
    file: str = "",
    inside: str = "",
    write: int = 1,
    once: str = "",
    seconds: float = 0,
) -> None:
    """Make the fault happen in this process: files are written before they reach ``os.fsync``."""
    seen = 0
    _fsync = os.fsync

    def faulty(descriptor: Any) -> None:
        nonlocal seen
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.name.startswith(f".{file}") or inside not in str(path):
            return _fsync(descriptor)
        seen += 1
        if seen < write or (once and Path(once).exists()):
            return _fsync(descriptor)
        if once:
            Path(once).touch()
        match do:
            case "sleep":
                time.sleep(seconds)
            case "kill":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            case "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _fsync(descriptor)

    os.fsync = faulty


for fault in json.loads(os.environ.get("CISS_FAULTS", "[]")):
    inject(**fault)
