"""What users bring, up to the micro-batches of a step: files, rows, features, the plan of passes, batches. It
imports common and config.
"""
