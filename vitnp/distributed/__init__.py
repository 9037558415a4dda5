"""Features and k-means on several machines by dask.distributed, with the same result as one process, bit for bit.

Dask moves the data and repeats the tasks of a lost worker. That changes no result: features depend on the photograph
alone, files of the store are named by their content, and partial sums are added here in the order of the rows.

The machines should have processors of the same kind: others may round products differently.
"""

from vitnp.distributed.cluster import Cluster
from vitnp.distributed.connect import connected

__all__ = ["Cluster", "connected"]
