"""The checkpoints vitnp knows by name: the registry, the download cache, and the one that comes with it."""
