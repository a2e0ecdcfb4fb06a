"""Figures: one chart serves the page and the files."""
