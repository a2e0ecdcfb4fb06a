"""Averages of weights beside fine-tuning."""
