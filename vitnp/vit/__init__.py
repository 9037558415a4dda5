"""The vision transformer: architecture, weights and forward pass."""
