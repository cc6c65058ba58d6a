"""perception: one network, one pass, every dense task."""

__version__ = "0.1.0"
