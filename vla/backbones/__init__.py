"""Vision-language backbones by name, one file each."""
