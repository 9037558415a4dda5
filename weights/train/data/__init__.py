"""Training data: packs of small images, removal of duplicates, sampling and cropping."""
