"""Runs of runs, and what they say side by side. It imports all rooms but commands."""
