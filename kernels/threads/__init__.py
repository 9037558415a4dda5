"""Spread work over the cores of one machine, with the same result for any number of threads."""
