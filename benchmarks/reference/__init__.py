"""The published way, written from its description: what the benchmarks compare with."""
