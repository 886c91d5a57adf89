"""Numbers with units, as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Spell seconds as ``3 h 05 min``, ``4 min 10 s`` or ``7 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def size_text(size: float) -> str:
    """Spell a number of bytes: ``1.4 GB``."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
