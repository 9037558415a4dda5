"""Constants of the fast bilateral solver, shared by the CPU and the GPU implementation."""

from __future__ import annotations

# Weights of red, green and blue in full-range BT.601, as in JPEG. Chroma is centered on zero, so that neutral gray lies
# in the middle of a bin and not on its edge.
LUMA = (0.299, 0.587, 0.114)
BLUE_DIFFERENCE = (-0.168736, -0.331264, 0.5)
RED_DIFFERENCE = (0.5, -0.418688, -0.081312)

# Sinkhorn iterations that make the affinity of the grid bistochastic.
BISTOCHASTIC_STEPS = 10
