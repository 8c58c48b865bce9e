"""The training loop, and the distillation of a whole compressed model from its original."""
