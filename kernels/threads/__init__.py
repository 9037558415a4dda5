"""Spread work over the cores of one machine, with the same answer for any number of threads."""
