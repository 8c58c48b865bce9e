"""What of a cage this machine lets a process have."""

from workers import cage


def has_landlock() -> bool:
    """Return whether the kernel has Landlock, and it is on."""
    return cage.libc.syscall(cage.LANDLOCK_CREATE, None, cage.ctypes.c_size_t(0), 1) >= 1
