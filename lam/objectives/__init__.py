"""What a latent action is trained to explain, one file a kind; `by_name` lists them."""
