"""From pixels to the features that the clustering reads."""

from vitnp.features.extract import Features, extract
from vitnp.features.identity import Identity
from vitnp.features.store import FeatureStore, prune
from vitnp.features.stored import StoredFeatures
from vitnp.features.stream import Extraction, extract_to_store, stored_features
from vitnp.features.temporary import check_space, estimate_bytes, temporary_store

__all__ = [
    "Extraction",
    "FeatureStore",
    "Features",
    "Identity",
    "StoredFeatures",
    "check_space",
    "estimate_bytes",
    "extract",
    "extract_to_store",
    "prune",
    "stored_features",
    "temporary_store",
]
