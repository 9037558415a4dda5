"""Quality of masks on photographs with true masks."""
