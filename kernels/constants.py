"""What the bilateral grids of all devices have in common."""

from __future__ import annotations

# Weights of red, green and blue. Full-range BT.601, as in JPEG; chroma is left centerd on zero, so that neutral gray lies amid
# a bin, not on its edge.
LUMA = (0.299, 0.587, 0.114)
BLUE_DIFFERENCE = (-0.168736, -0.331264, 0.5)
RED_DIFFERENCE = (0.5, -0.418688, -0.081312)

BISTOCHASTIC_STEPS = 10
