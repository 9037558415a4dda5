"""Cluster feature rows: k-means of any number of rows, spectral clustering, exact nearest neighbors."""
