"""Extract the features that the clustering reads, and keep them on disk."""
