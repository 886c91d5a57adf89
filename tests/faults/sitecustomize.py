"""Faults at an exact place, for processes that are started with this folder in PYTHONPATH.

``CISS_FAULT`` is JSON: ``do`` (kill, full, sleep) at every write of a file named ``file`` (default:
any) from number ``write`` on (default: 1). With ``once``, a path, only the first process that comes
so far suffers it, and leaves the path as a sign.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

_fsync = os.fsync


def inject(do: str, file: str = "", write: int = 1, once: str = "", seconds: float = 0) -> None:
    """Make the fault happen in this process: files are written before they reach ``os.fsync``."""
    seen = 0

    def faulty(descriptor: Any) -> None:
        nonlocal seen
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.name.startswith(f".{file}"):
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


if "CISS_FAULT" in os.environ:
    inject(**json.loads(os.environ["CISS_FAULT"]))
