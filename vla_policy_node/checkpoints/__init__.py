"""Checkpoint directories, which may be anybody's: their files, layouts, sizes and statistics."""
