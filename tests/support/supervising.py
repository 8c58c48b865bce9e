"""The supervisor of a worker, in the process of the test."""

import threading
from typing import Any

from app.settings import Settings
from app.storage import Storage
from app.storage.registry import open_storage
from workers.supervisor import Supervisor


def supervisor_of(settings: Settings, sessions: Any, storage: Storage | None = None) -> Supervisor:
    """Return the supervisor of a worker called `worker`; without `storage` it has that of the settings."""
    return Supervisor(settings, sessions, storage or open_storage(settings.artifacts_url), "worker", threading.Event())
