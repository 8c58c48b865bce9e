"""Opening a checkpoint block by block, and the same with parts of it replaced."""
