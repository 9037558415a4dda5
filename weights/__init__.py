"""Data files of the package: the registry of checkpoints, and the built-in checkpoint with its collection."""
