"""Read labeled data sets from disk."""
