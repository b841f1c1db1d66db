"""Closed-loop benchmarks; imports without torch."""
