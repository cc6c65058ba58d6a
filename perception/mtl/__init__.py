"""Multi-task learning: combine the losses of several tasks into one update."""
