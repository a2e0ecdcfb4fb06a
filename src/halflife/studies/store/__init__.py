"""Runs on disk: records, the store that holds them, and what names a run."""
