"""Quality, size, speed and memory of a model, and the protocol under which they are measured."""
