"""The product of learning rate and decay."""
