"""The progress of a training run, so that a run that died goes on where it was.

Progress lies beside the declared outputs of a job and is none of them: what cleans up after a
failed job leaves it alone. It names the recipe it belongs to and is never resumed under another.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ciss import distributed
from ciss.errors import CissError
from ciss.files import remove_partial, replacing
from ciss.runtime import log


def identity(facts: Mapping[str, Any]) -> str:
    """Return a digest of everything that decides a run's result."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class DamagedError(Exception):
    """A file that is not as it was written."""


class Progress:
    """The progress file of one run; without a path, nothing is kept.

    The file is a SHA-256 digest and what ``torch.save`` makes, whose own checksums ``torch.load``
    does not look at: weights with a flipped bit would load. The one before it is kept beside it,
    so that a file that is damaged later costs one epoch and not all of them.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved progress, and keep the one that it replaces as ``previous``.

        Of several processes, whose states are equal, the main one writes and the others wait: one
        that left earlier would be taken for a failure, and the main one ended with it.
        Raises ``CissError`` when it cannot be written; what was saved last stays.
        """
        if self.path is not None and distributed.is_main():
            self._save(state)
        distributed.wait()

    def _save(self, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "state": dict(state)}, buffer)
        try:
            self._write(buffer)
        except OSError as error:
            raise CissError(
                f"cannot save the progress in {self.path} ({error.strerror}); the last saved "
                "progress is kept: make room and start again"
            ) from None

    def _write(self, buffer: io.BytesIO) -> None:
        assert self.path is not None
        content = buffer.getbuffer()
        for last_try in (False, True):
            try:
                with replacing(self.path) as temporary:
                    with temporary.open("wb") as file:
                        file.write(hashlib.sha256(content).digest())
                        file.write(content)
                    # Until the block ends there is only `previous`, which `load` falls back on.
                    with suppress(FileNotFoundError):
                        self.path.replace(self.previous)
                return
            except OSError:
                # Three files may be one too many for the disk: the oldest makes room.
                if last_try or not self.previous.exists() or not self.path.exists():
                    raise
                self.previous.unlink()

    @property
    def previous(self) -> Path:
        """The file saved before the last one."""
        assert self.path is not None
        return self.path.with_name(f"previous_{self.path.name}")

    def load(self) -> dict[str, Any] | None:
        """Return the last saved state that is whole, on the CPU, or ``None`` without one.

        A file that is damaged or of another recipe is passed over with a line in the log. What a
        run that was killed while it wrote left behind is removed.
        """
        if self.path is None:
            return None
        remove_partial(self.path)
        files = [path for path in (self.path, self.previous) if path.is_file()]
        for path in files:
            try:
                found, state = _read(path)
            except DamagedError as error:
                log.warning("progress %s is damaged (%s): removed", path, error)
                path.unlink()
            except (OSError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
                log.warning("progress %s cannot be read (%s): passed over", path, error)
            else:
                if found == self.identity:
                    return dict(state)
                log.info("progress %s belongs to another recipe: passed over", path)
        if files:
            log.info("no progress to go on from: starting anew")
        return None

    def finish(self) -> None:
        """Keep the last file alone, once the run's outputs are written.

        Whoever ordered the run may have died meanwhile: its successor, which knows nothing of the
        outputs and orders them again, gets them from this file in seconds.
        """
        if self.path is not None:
            self.previous.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the files, once whoever ordered the run works with its outputs."""
        if self.path is not None and distributed.is_main():
            for path in (self.path, self.previous):
                path.unlink(missing_ok=True)


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the identity and the state; ``DamagedError`` where the checksum differs."""
    with path.open("rb") as file:
        digest, content = file.read(hashlib.sha256().digest_size), file.read()
    if hashlib.sha256(content).digest() != digest:
        raise DamagedError("its checksum differs")
    # weights_only: tensors and plain values, no code.
    loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded["identity"], loaded["state"]
