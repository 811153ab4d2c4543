"""Benchmarks: comparisons within one run that could fail."""
