"""Vision-language-action model: pretrained on latent actions, fine-tuned to act."""
