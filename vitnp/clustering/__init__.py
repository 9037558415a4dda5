"""Cluster feature rows: k-means of any number, spectral and agglomerative clustering, exact nearest neighbors."""
