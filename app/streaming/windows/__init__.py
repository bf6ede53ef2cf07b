"""The kinds of windows: where the frames of a run go."""
