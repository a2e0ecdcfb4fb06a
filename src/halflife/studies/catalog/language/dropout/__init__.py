"""Decay beside dropout."""
