"""How fast pretraining and acting are, and against what; `python scripts/benchmark.py vla` runs it."""
