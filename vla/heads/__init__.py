"""Action heads by name, one file each."""
