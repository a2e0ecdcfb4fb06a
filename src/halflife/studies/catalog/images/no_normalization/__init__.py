"""Nets without normalization."""
