"""The method: foreground at three levels, their combination and cleaning, and classes of regions."""
