"""Studies of models with closed forms."""
