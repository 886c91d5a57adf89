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

from ciss.errors import CissError
from ciss.files import replacing
from ciss.runtime import log


def identity(facts: Mapping[str, Any]) -> str:
    """Return a digest of everything that decides a run's result."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Progress:
    """The progress file of one run; without a path, nothing is kept.

    The file is a SHA-256 digest and what ``torch.save`` makes, whose own checksums ``torch.load``
    does not look at: weights with a flipped bit would load.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path = path
        self.identity = identity

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved progress; the old one stays when this fails."""
        if self.path is None:
            return
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "state": dict(state)}, buffer)
        content = buffer.getbuffer()
        try:
            with replacing(self.path) as temporary, temporary.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)
        except OSError as error:
            raise CissError(
                f"cannot save the progress in {self.path} ({error.strerror}); the last saved "
                "progress is kept: make room and start again"
            ) from None

    def load(self) -> dict[str, Any] | None:
        """Return the saved state on the CPU, or ``None`` when there is none to go on from.

        A file that is damaged or of another recipe is passed over with a line in the log.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            found, state = _read(self.path)
        except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            log.warning("progress %s is damaged (%s): starting anew", self.path, error)
            return None
        if found != self.identity:
            log.info("progress %s belongs to another recipe: starting anew", self.path)
            return None
        return dict(state)

    def clear(self) -> None:
        """Remove the file, once the run's outputs are written."""
        if self.path is not None:
            with suppress(FileNotFoundError):
                self.path.unlink()


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the identity and the state; ``ValueError`` where the checksum differs."""
    with path.open("rb") as file:
        digest, content = file.read(hashlib.sha256().digest_size), file.read()
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("its checksum differs")
    # weights_only: tensors and plain values, no code.
    loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return loaded["identity"], loaded["state"]
