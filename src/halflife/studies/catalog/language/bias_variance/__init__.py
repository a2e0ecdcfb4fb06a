"""Bias against variance."""
