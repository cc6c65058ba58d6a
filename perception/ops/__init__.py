"""Task-independent operations on boxes, images, losses and drawings. Pure functions."""
