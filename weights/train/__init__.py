"""Training of the built-in checkpoint: image packs, self-training, distillation, and the built-in collection.

Only this package uses torch, and only its ``selftrain`` and ``distill`` commands need it. Nothing in the segmentation
code imports it.
"""
