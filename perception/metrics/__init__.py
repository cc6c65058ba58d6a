"""Accumulators of predictions against targets; know nothing of models."""
