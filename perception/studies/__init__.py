"""Studies of several trainings: compare, group, tune, grow. Every training has an ordinary run folder."""
