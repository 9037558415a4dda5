"""Cluster rows of features: k-means of any number of rows, spectral clustering, nearest neighbors."""
