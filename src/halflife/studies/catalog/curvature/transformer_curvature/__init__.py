"""Curvature of transformers."""
