"""Why a server that comes along could not be started. Meant for the person at the terminal; never sent to a client."""


class EmbeddedServerError(RuntimeError):
    """A server cannot be started. The message says why and what to do instead."""


class DataDirectoryInUse(EmbeddedServerError):
    """Another process runs its servers on the same data directory."""
