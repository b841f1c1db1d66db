"""How fast training and labelling are, and against what; `python scripts/benchmark.py lam` runs it."""
