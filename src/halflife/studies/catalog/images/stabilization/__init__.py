"""Loss stabilization."""
