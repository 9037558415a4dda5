"""The method: foreground at four levels, their combination and cleaning, and classes of regions."""
