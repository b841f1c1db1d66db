"""A look at a store of episodes before anything is trained on it: what is wrong, what it is, what is in it."""
