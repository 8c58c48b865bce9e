"""What a model is worth, what that was measured on, and beside what it must be seen."""
