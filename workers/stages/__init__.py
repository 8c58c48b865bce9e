"""The stages of a job, one module each; `workers.stages.registry` lists them in order."""
