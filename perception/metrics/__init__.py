"""Metrics: accumulators of predictions and targets, independent of the models."""
