"""What leaves bad minima."""
