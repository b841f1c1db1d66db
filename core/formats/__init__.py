"""Readers of other episode formats, one file each."""
