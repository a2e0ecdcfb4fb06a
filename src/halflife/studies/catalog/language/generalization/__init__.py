"""The gap between training and validation."""
