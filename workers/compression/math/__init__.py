"""Mathematics on tensors: fits of compact structures to matrices, structured pruning, sensitivities of modules."""
