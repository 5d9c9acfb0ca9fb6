"""Multi-task pretraining and distillation of NLU encoders under DeepSpeed."""
