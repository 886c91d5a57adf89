"""Faults at an exact place, for processes that are started with this folder in PYTHONPATH.

``CISS_FAULTS`` is a JSON list: ``do`` (kill, full, sleep) at every write of a file named ``file``
(default: any) under a path with ``inside`` in it, from number ``write`` on (default: 1). With
``once``, a path, only the first process that comes so far suffers it, and leaves that path as a
sign. ``flip`` and ``truncate`` name files beside it that are damaged first.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def inject(
    do: str,
    file: str = "",
    inside: str = "",
    write: int = 1,
    once: str = "",
    seconds: float = 0,
    flip: Sequence[str] = (),
    truncate: Sequence[str] = (),
) -> None:
    """Make the fault happen in this process: files are written before they reach ``os.fsync``."""
    seen, mine = 0, False
    _fsync = os.fsync

    def faulty(descriptor: Any) -> None:
        nonlocal seen, mine
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if not path.name.startswith(f".{file}") or inside not in str(path):
            return _fsync(descriptor)
        seen += 1
        if seen < write or (once and Path(once).exists() and not mine):
            return _fsync(descriptor)
        if once:
            Path(once).touch()
            mine = True
        for damage, names in {"flip": flip, "truncate": truncate}.items():
            for name in names:
                spoil(path.with_name(name), damage)
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


def spoil(path: Path, damage: str) -> None:
    """Change a bit in the middle of a file, or cut it there."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 8
    path.write_bytes(content if damage == "flip" else content[:middle])


for fault in json.loads(os.environ.get("CISS_FAULTS", "[]")):
    inject(**fault)
