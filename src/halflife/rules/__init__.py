"""Decay rules: each answers which fraction of the weight is removed at this step."""
