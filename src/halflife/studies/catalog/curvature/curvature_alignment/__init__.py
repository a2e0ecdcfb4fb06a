"""Curvature and gradient noise."""
