"""Speed measurements: networks by stage, training data, training steps."""
