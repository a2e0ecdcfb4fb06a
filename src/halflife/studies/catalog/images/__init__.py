"""Studies of image classifiers."""
