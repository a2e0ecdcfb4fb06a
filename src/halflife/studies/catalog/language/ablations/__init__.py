"""Ablations of the schedules."""
