"""The written form of a compressed model, and opening it as a client would."""
