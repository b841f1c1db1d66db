"""A page that shows what the codes of a latent action model mean."""
