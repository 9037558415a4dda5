"""Find similar photographs and near duplicates by the cosine of their CLS tokens."""
