"""The paper's claim, settled: what cross-viewpoint reconstruction does to latent actions under each nuisance."""
