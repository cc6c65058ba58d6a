"""Questions that take more than one training: compare, group, tune, grow. Every training is an ordinary run folder."""
