"""Estimators of mutual information: pure functions of one sample, by name in `by_name`."""
