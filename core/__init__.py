"""What the packages agree on: episodes, stores, labels, action spaces, configuration, runs, training."""
