"""The stages of a job, one module each with a `run(context, directory)`; `workers.runner` lists them in order."""
