"""Training of the built-in checkpoint: image packs, distillation, and fitting of the built-in collection.

Only this package uses torch, and only its ``distill`` command needs it. Nothing in the segmentation code imports it.
"""
