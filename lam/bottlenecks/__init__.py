"""What a latent action is squeezed through, one file a kind; `by_name` lists them."""
