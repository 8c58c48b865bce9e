"""Compact forms of single matrices: the best factors, who gets how many parameters, and the model fitted in order."""
