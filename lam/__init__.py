"""The multi-view latent action model: one camera's latent action must explain another camera's future."""
