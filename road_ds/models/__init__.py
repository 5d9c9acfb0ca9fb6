"""A shared encoder with one head per task, its layers, exported folders, and what they predict alone or together.
It imports the rooms up to tasks.
"""
