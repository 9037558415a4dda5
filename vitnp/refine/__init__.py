"""Refine a coarse foreground map along the edges of the photograph."""
