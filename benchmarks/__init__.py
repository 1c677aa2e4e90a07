"""Measures speed and memory: `python -m benchmarks.throughput`.  The program itself needs nothing of this."""
