"""The contents of a checkpoint, and the plans of each method with exact parameter counts. Never imports torch, because
the app imports this package."""
