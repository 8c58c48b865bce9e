"""Training the whole compressed model until its next-token distributions are again those of the original."""
