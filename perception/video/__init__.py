"""Video: fault-tolerant sources, a threaded pipeline, tracking, smoothing, monitors and output writers."""
