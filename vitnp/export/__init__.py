"""Segment many photographs, and write what was found."""
