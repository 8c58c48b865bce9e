"""The contents of a checkpoint, and the plans of each method with exact parameter counts.

Client, service and compressor share it, so that none of them refuses what another accepts. Never imports torch.
"""
