"""SGD until it is stationary, on small functions, beside the minima of the objectives that it may follow."""
