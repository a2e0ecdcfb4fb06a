"""Low precision: when training breaks, which rounding breaks it, and what weight decay does about it."""
