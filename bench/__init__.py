"""Measurements: every figure that the project states is printed and recorded by a command of this package."""
