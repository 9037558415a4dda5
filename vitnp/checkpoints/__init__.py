"""Read checkpoints of DINO, DINOv2, timm and transformers, without torch."""
