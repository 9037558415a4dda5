"""Score masks, classes and boxes against true ones."""
