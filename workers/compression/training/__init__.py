"""Training: one loop, and with it the distillation of a whole compressed model from its original."""
