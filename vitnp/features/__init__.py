"""From pixels to the features that the clustering reads."""

from vitnp.features.extract import Features, extract

__all__ = ["Features", "extract"]
