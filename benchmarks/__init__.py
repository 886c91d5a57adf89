"""Figures of speed and memory, ours beside the published way (docs/benchmarks.md)."""
