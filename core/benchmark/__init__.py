"""What benchmarks measure with; how fast and how small reading of episodes is, beside other ways to do it."""
