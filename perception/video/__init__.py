"""Video: sources that fail and come back, stages side by side, tracks, smoothing, monitors, and what is written."""
