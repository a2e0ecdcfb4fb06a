"""Decay as a learning rate."""
