"""A run under DeepSpeed: its settings on a machine, the engine, checkpoints, the run folder, what happens between
steps, what it leaves. It imports the rooms up to distillation.
"""
