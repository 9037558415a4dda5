"""Read photographs and write files."""
