"""Errors of the embedded servers, for the person at the terminal; they are never sent to a client."""


class EmbeddedServerError(RuntimeError):
    """A server cannot be started. The message says why and what to do instead."""


class DataDirectoryInUse(EmbeddedServerError):
    """Another process runs its servers in the same data directory."""
