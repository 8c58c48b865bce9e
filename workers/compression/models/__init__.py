"""Checkpoints that are opened and run block by block, as they are or with finished parts laid over them."""
