"""Constant and decayed learning rates."""
