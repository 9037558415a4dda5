"""Video: frames in order, patch scores smoothed along time, a preview."""
