"""A soak: random faults while clients post many small jobs, and a checker that goes over all that was recorded.

`program` runs an API or a worker whose children compute nothing (`computing`), so that hundreds of jobs fit into
minutes. All else is the service as it is: PostgreSQL, Valkey, supervisor, cages, storage, API. `clients` post, cancel,
look and download; `faults` kill and freeze; `history` holds what was recorded and which promises that breaks.
"""
