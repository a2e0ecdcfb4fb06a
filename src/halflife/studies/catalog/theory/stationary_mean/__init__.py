"""Where SGD settles."""
