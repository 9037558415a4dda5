"""Match the patches of two photographs, and draw the correspondences."""
