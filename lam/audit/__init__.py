"""Is a latent action about the action? Probes, mutual information, and the controls beside them."""
