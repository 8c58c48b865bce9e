"""The cages of the two kinds of children, and what is taken back out of them."""

import os
import ssl
from pathlib import Path

from modelpress.contract.codes import FailureCode
from modelpress.spec.headers import boundary_of
from workers.cage import COMPUTE_USER, FETCH_USER, Cage, give
from workers.fetch import FetchRequest
from workers.messages import Assignment, AttemptFailed

CERTIFICATES = (
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates/extracted",
)
"""Where systems keep the certificates that are trusted, beside private keys that nobody else may read."""
NAMES = ("/etc/gai.conf", "/etc/services", "/etc/protocols", "/run/systemd/resolve", "/run/resolvconf")
"""What the C library looks up names and ports in, besides what every cage has."""

FETCH_MEMORY = 4 << 30
"""Bytes of memory for the process that fetches: far more than files take that are no bombs."""


def fetch_cage(request: FetchRequest, home: Path) -> Cage:
    """Return the cage in which a request is fetched: it has the network, and writes what it fetches and its home."""
    trusted = ssl.get_default_verify_paths()
    named = [os.environ[name] for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ]
    roots = (*request.sources.model_roots, *request.sources.data_roots)
    return Cage(
        writable=(str(request.sources_dir), str(home)),
        readable=(
            *map(str, roots),
            trusted.openssl_cafile,
            trusted.openssl_capath,
            *named,
            *CERTIFICATES,
            *NAMES,
        ),
        network=True,
        user=FETCH_USER,
        memory=FETCH_MEMORY,
    )


def compute_cage(assignment: Assignment) -> Cage:
    """Return the cage in which an assignment is computed."""
    tasks = [] if assignment.tasks_dir is None else [assignment.tasks_dir]
    texts = [text.resolve() for text in assignment.texts.values()]
    datasets = [os.environ["HF_DATASETS_CACHE"]] if "HF_DATASETS_CACHE" in os.environ else []
    alone = assignment.processes == 1 or (assignment.processes is None and assignment.device == "cpu")
    return Cage(
        writable=(str(assignment.work_dir), *datasets),
        readable=tuple(str(path) for path in (boundary_of(assignment.model_path), *texts, *tasks)),
        loopback=assignment.recipe.distillation is not None and not alone,
        # Who keeps lock files in a cache that belongs to somebody else needs its owner.
        user=None if datasets else COMPUTE_USER,
    )


def taken_back(package: Path, work_dir: Path) -> Path:
    """Return the package once it belongs to this process's user. Raises AttemptFailed where it lies elsewhere."""
    if not package.resolve().is_relative_to(work_dir.resolve()):
        raise AttemptFailed(FailureCode.INTERNAL_ERROR, "the computing process names a package outside its directory")
    give([package], os.geteuid(), os.getegid())
    return package
