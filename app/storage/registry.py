"""The storage backends, by the scheme of the URL that chooses one.

A new backend is a file beside this one with a class that has the methods of `Storage`, and a line in `BACKENDS`.
"""

from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from app.errors import UnknownStorage
from app.storage import Storage
from app.storage.directory import DirectoryStorage
from app.storage.objects import ObjectStorage

BACKENDS: Final[dict[str, Callable[[str], Storage]]] = {
    "file": DirectoryStorage.at,
    "s3": ObjectStorage.at,
    "gs": ObjectStorage.at,
    "az": ObjectStorage.at,
}


def open_storage(url: str) -> Storage:
    """Return the storage at a URL such as `file:///srv/artifacts`.

    Raises:
        UnknownStorage: no backend has the URL's scheme.
    """
    scheme = urlsplit(url).scheme
    if scheme not in BACKENDS:
        known = ", ".join(f"{name}://" for name in BACKENDS)
        raise UnknownStorage(f"MODELPRESS_STORAGE_URL has the scheme {scheme!r}; send a URL that begins with {known}")
    return BACKENDS[scheme](url)
