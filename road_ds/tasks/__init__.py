"""What a head answers, a file per task; metrics, and the evaluation of a split. A new task: a file here and a line
in registry.py. It imports common, config and data.
"""
