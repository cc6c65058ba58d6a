"""The training loop, evaluation and their tools, as plain functions."""
