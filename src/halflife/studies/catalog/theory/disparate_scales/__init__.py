"""Sums of numbers of disparate scales, in few bits."""
