"""Settings for every test: one thread, no clock, and the helpers importable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hypothesis import settings

# Before torch is imported: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

# How long an example takes depends on what else the machine does.
settings.register_profile("ciss", deadline=None)
settings.load_profile("ciss")
