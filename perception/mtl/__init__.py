"""Multi-task learning: how several losses become one update."""
