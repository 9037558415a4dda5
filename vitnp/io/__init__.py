"""Find, decode and resize photographs; write files."""
