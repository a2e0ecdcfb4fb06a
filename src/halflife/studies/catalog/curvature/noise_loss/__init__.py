"""Gradient noise against the loss."""
