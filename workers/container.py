"""What the system says of memory: how much the container leaves, and whether it has killed processes for want of it."""

from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
VMSTAT = Path("/proc/vmstat")

UNLIMITED = 2**63
"""More than any machine has. Version 1 of control groups writes a number close to it where there is no limit."""


@dataclass(frozen=True)
class Version:
    """Names of the files of one version of Linux control groups."""

    limit: str
    used: str
    droppable: str
    """The entry of memory.stat for inactive page cache, which counts as used but is freed when memory is needed."""


V1 = Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = Version("memory.max", "memory.current", "inactive_file")


def left_in_container(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> int:
    """Return the bytes that the control groups of this process leave, or UNLIMITED without a limit."""
    return min((left_in(group, version) for group, version in groups(mount, membership)), default=UNLIMITED)


def groups(mount: Path, membership: Path) -> list[tuple[Path, Version]]:
    """Return the control groups that may limit this process: its own and all around it, as far as it sees them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        lines = []
    found = [(mount, V2), (mount / "memory", V1)]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "memory" in controllers.split(","):
            root, version = (mount, V2) if controllers == "" else (mount / "memory", V1)
            inner = root / path.lstrip("/")
            found += [(group, version) for group in (inner, *inner.parents) if group.is_relative_to(root)]
    return list(dict.fromkeys(found))


def left_in(group: Path, version: Version) -> int:
    """Return the bytes that one control group leaves."""
    try:
        limit, used = ((group / name).read_text().strip() for name in (version.limit, version.used))
    except OSError:
        return UNLIMITED
    if limit == "max" or int(limit) >= UNLIMITED // 2:
        return UNLIMITED
    return int(limit) - int(used) + droppable(group, version)


def droppable(group: Path, version: Version) -> int:
    """Return the bytes of inactive page cache."""
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith(f"{version.droppable} "))


def oom_kills(vmstat: Path = VMSTAT) -> int:
    """Return how many processes the kernel has killed for want of memory, in this container or any other."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
