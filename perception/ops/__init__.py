"""Parts that know nothing of a task: arithmetic on boxes, images, losses, drawings. Pure functions."""
