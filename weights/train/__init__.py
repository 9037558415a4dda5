"""How the built-in checkpoint was made, to be run by anybody: packs of photographs, and distillation.

Only this package knows torch, and only two of its commands need it. Nothing that segments imports it.
"""
