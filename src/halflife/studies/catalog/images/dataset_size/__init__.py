"""One budget of samples, data sets of several sizes."""
