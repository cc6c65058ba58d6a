"""Pseudo-labels from a trained network: predictions on which several views of an image agree."""
