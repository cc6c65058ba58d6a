"""Measuring speed: networks stage by stage, training data, training steps."""
