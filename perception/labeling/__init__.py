"""Labeling images with a trained network: what several views of an image agree on."""
