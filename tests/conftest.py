"""Settings for every test: one thread, and the helpers importable."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported: tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
