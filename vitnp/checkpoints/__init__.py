"""Load checkpoints of many origins, without torch."""
