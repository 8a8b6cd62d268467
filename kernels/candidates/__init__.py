"""Kernels that only the benchmarks run so far; no network calls them."""
