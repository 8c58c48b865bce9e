"""Where models and text come from: the hub, directories of the operator, Python itself. Torch-free.

Everything a reference can be wrong about is found out here, before a job exists; the bytes themselves are fetched later
by `workers.fetch`, which checks them again.
"""
