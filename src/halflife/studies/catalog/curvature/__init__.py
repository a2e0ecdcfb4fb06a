"""Studies of curvature, averages and gradient noise."""
