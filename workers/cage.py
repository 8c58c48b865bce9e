"""The cage of a process that reads a stranger's model: `python cage.py CAGE MODULE` enters it and runs MODULE's `main`.

CAGE is a `Cage` as JSON. Each part is taken where the system has it, and the log says which ones there are:

- limits: no core dump, which would hold the model, a bound on processes, and for fetching one on memory; where memory
  runs out, the system ends it before others;
- network: a network of its own, in which there is nobody else, or the worker's for a process whose work is to fetch;
- sockets: none but those to itself, or those of the Internet for a process that fetches: other processes of the
  machine, such as a user's own bus, would do for a local socket what the cage forbids;
- user: where the worker is root, a user of its own that owns alone what is writable;
- capabilities: none, but to read what that user may not where Landlock says what may be read;
- privileges: no program gives it new ones;
- files: by Landlock, system and libraries, what the cage lists is read-only or writable, and nothing
  else is there; nor are the memory and the environment of any process outside, or signals to it.

It imports the standard library alone, and enters the cage before any thread or library is there.
"""

import ctypes
import fcntl
import gc
import importlib
import importlib.util
import json
import logging
import os
import platform
import resource
import socket
import stat
import struct
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

COMPUTE_USER, FETCH_USER = 61_111, 61_112
"""The user and group of the computing and of the fetching process where the worker is root. No account has them."""
MOST_PROCESSES = 16_384

PR_SET_KEEPCAPS, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 38, 22, 47, 2
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1 << 1, 1 << 2
CAPABILITIES_VERSION = 0x20080522
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
"""Numbers of the system calls, the same on every machine."""
FILE_ACCESS = 0b1100_0000_0000_0111
"""Execute, write, read, truncate, ioctl: what there is to do with a file."""
READ = 0b1101
"""Execute, read a file, list a directory."""
LIST = 0b1000
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files each version of Landlock knows; later ones know as many as the last."""
SCOPES = 0b11
"""No abstract sockets and no signals of processes outside, from version 6 on."""

SOCKET_CALL = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}
"""By machine: its number in an audit record, and that of the system call `socket`."""
IO_URING_SETUP = 425
INTERNET = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_NETLINK", socket.AF_INET))
"""The families of sockets by which a process reaches the Internet; by the last it learns which addresses it has."""
FIRST_FOREIGN_CALL = 0x40000000

SYSTEM = (
    "/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/opt", "/proc", "/sys", "/etc/ld.so.cache", "/etc/ld.so.conf",
    "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime", "/etc/passwd", "/etc/group", "/etc/nsswitch.conf",
    "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/mime.types", "/etc/fonts", "/etc/OpenCL", "/nix/store",
)  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom", "shm", "kfd", "dri", "infiniband")
GPU_DEVICES = "nvidia*"
OURS = ("app", "modelpress", "workers")
"""The packages whose code a caged process may read."""

log = logging.getLogger("cage")
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Cage:
    """The files, sockets and rights that a caged process may use.

    Attributes:
        writable: directories that it may write to.
        readable: files and directories that it may read besides the system's.
        listable: directories whose names it may read, and nothing below.
        loopback: whether its own children talk to each other over the loopback interface.
        network: whether it has the worker's network.
        user: number of the user and group as which it runs where the worker is root; None: as the worker.
        memory: bytes that it may ask for; None: as many as there are.
    """

    writable: tuple[str, ...]
    readable: tuple[str, ...] = ()
    listable: tuple[str, ...] = ()
    loopback: bool = False
    network: bool = False
    user: int | None = COMPUTE_USER
    memory: int | None = None

    def command(self, module: str) -> list[str]:
        """Return the command that runs a module in this cage."""
        return [sys.executable, "-P", __file__, json.dumps(asdict(self)), module]


def main() -> None:
    """Enter the cage that the arguments describe, run `main` of the module that they name, and exit with its status."""
    cage, module = Cage(**json.loads(sys.argv[1])), sys.argv[2]
    packages = [str(path) for name in (module, *OURS) for path in package(name.partition(".")[0])]
    parts = enter(cage, packages)
    sys.stderr.write(f"caged: {', '.join(parts)}\n")
    sys.argv = [module]
    sys.exit(imported(module).main())


def imported(module: str) -> Any:
    """Return a module, imported without a look for garbage on the way.

    What a large library makes as it is imported stays. To look through it again and again takes a fifth of the time.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


def package(name: str) -> Iterable[str]:
    """Return the directories of a package, or the file of a module, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return ()
    return spec.submodule_search_locations or ([spec.origin] if spec.origin else ())


def enter(cage: Cage, packages: Iterable[str] = ()) -> list[str]:
    """Enter the cage, and return the names of the parts that it has here."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    succeeds(volunteer)
    if cage.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (cage.memory, cage.memory))
    isolated = not cage.network and succeeds(isolate_network)
    other = cage.user if os.geteuid() == 0 else None
    user = other is not None and succeeds(lambda: become_user(other, cage.writable))
    if not user:
        succeeds(lambda: give(cage.writable, os.geteuid(), os.getegid()))
    kept = CAP_DAC_READ_SEARCH if user else CAP_DAC_READ_SEARCH | CAP_DAC_OVERRIDE if os.geteuid() == 0 else 0
    capable = succeeds(lambda: keep_capabilities(kept & permitted()))
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    landlocked = succeeds(lambda: restrict_files(cage, packages))
    families = INTERNET if cage.network else ()
    filtered = not cage.loopback and succeeds(lambda: refuse_sockets(families))
    parts = {
        "limits": True,
        "network of its own": isolated,
        "no sockets": filtered and not cage.network,
        "no local sockets": filtered and cage.network,
        "user of its own": user,
        "no capabilities": capable,
        "no new privileges": True,
        "files by Landlock": landlocked,
    }
    return [name for name, there in parts.items() if there]


def succeeds(part: Callable[[], None]) -> bool:
    """Return whether the system allows a part of the cage."""
    try:
        part()
    except OSError as error:
        log.info("not allowed here: %s", error)
        return False
    return True


def check(result: int) -> int:
    """Return the result of a call of the C library. Raises OSError where it failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def volunteer() -> None:
    """Ask the system to end this process before others where memory runs out, such as the database."""
    Path("/proc/self/oom_score_adj").write_text("1000")


def isolate_network() -> None:
    """Leave the network for an empty one. Raises PermissionError, and changes nothing, where that is not allowed."""
    trial = os.fork()
    if trial == 0:
        os._exit(0 if succeeds(leave_network) else 1)  # what fails halfway cannot be taken back
    if os.waitpid(trial, 0)[1] != 0:
        raise PermissionError("no network of its own")
    leave_network()


def leave_network() -> None:
    """Leave the network for an empty one, whose loopback interface is up."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        check(libc.unshare(CLONE_NEWNET))
    except PermissionError:
        check(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET))
        for name, line in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            Path("/proc/self", name).write_text(line)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack_from("H", fcntl.ioctl(handle, SIOCGIFFLAGS, request), 16)[0]
        fcntl.ioctl(handle, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", flags | IFF_UP))


def become_user(user: int, writable: Iterable[str]) -> None:
    """Go on as another user, who owns what is writable, and may still read what root may."""
    if not permitted() & CAP_DAC_READ_SEARCH:
        raise PermissionError("root lacks the capability DAC_READ_SEARCH here")
    give(writable, user, user)
    try:
        os.setgroups([])
        check(libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    except OSError:
        give(writable, os.geteuid(), os.getegid())
        raise
    resource.setrlimit(resource.RLIMIT_NPROC, (MOST_PROCESSES, MOST_PROCESSES))
    os.environ["USER"] = os.environ["LOGNAME"] = "modelpress"  # the number has no name, and libraries ask for one


def give(places: Iterable[str | Path], uid: int, gid: int) -> None:
    """Make a user the owner of directories and all in them, but of links and of files that have other names, too."""
    for place in places:
        for directory, _, names in os.walk(place):
            for path in (directory, *(f"{directory}/{name}" for name in names)):
                with suppress(FileNotFoundError):  # moved meanwhile by another process, such as one that fetches
                    found = os.lstat(path)
                    ordinary = stat.S_ISDIR(found.st_mode) or (stat.S_ISREG(found.st_mode) and found.st_nlink == 1)
                    if ordinary and (found.st_uid, found.st_gid) != (uid, gid):
                        os.chown(path, uid, gid, follow_symlinks=False)


def permitted() -> int:
    """Return the capabilities that this process may have, as a mask."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))


def keep_capabilities(kept: int) -> None:
    """Give up all capabilities but those of the mask, which programs that this one starts have as well."""
    header = struct.pack("Ii", CAPABILITIES_VERSION, 0)
    low, high = kept & 0xFFFFFFFF, kept >> 32
    check(libc.capset(header, struct.pack("6I", low, low, low, high, high, high)))
    for capability in range(kept.bit_length()):
        if kept >> capability & 1:
            check(libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0))


def restrict_files(cage: Cage, packages: Iterable[str]) -> None:
    """Take everything from this process but what the cage lists, by Landlock."""
    version = check(libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))
    all_rights = (1 << FILE_RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("QQQ", all_rights, 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 8
    ruleset = check(libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0))
    devices = [f"/dev/{name}" for name in DEVICES] + [str(path) for path in Path("/dev").glob(GPU_DEVICES)]
    listable = [os.path.realpath(path) for path in cage.listable]
    libraries = [path for path in sys.path if path and os.path.realpath(path) not in listable]
    metadata = [str(path) for place in listable for path in Path(place).glob("*.egg-info")]
    prefixes = (sys.prefix, sys.base_prefix, sys.exec_prefix, *os.environ.get("LD_LIBRARY_PATH", "").split(":"))
    for rights, paths in (
        (LIST, listable),
        (READ, (*SYSTEM, *prefixes, *libraries, *packages, *metadata, *cage.readable)),
        (all_rights, (*cage.writable, *devices)),
    ):
        for path in filter(None, paths):
            with suppress(FileNotFoundError, NotADirectoryError):
                allow(ruleset, path, rights & all_rights)
    check(libc.syscall(LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)


def allow(ruleset: int, path: str, rights: int) -> None:
    """Add a path to what may be used."""
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= FILE_ACCESS
        if rights:
            check(libc.syscall(LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", rights, place), 0))
    finally:
        os.close(place)


def refuse_sockets(but: Iterable[int] = ()) -> None:
    """Let no socket be opened but of some families, by a filter of system calls. A pair of sockets is none of them."""
    try:
        machine, call = SOCKET_CALL[platform.machine()]
    except KeyError:
        raise OSError(f"the system calls of {platform.machine()} are not known") from None
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allowed, refused = 0x7FFF0000, 0x00050001  # errno 1: not permitted
    families = tuple(but)
    more = len(families)
    program = [
        (load, 0, 0, 4), (equal, 0, more + 5, machine),
        (load, 0, 0, 0), (at_least, more + 3, 0, FIRST_FOREIGN_CALL), (equal, more + 2, 0, IO_URING_SETUP),
        (equal, 0, more + 2, call),
        (load, 0, 0, 16), *((equal, more - place, 0, family) for place, family in enumerate(families)),
        (answer, 0, 0, refused), (answer, 0, 0, allowed),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    pointer = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    check(libc.prctl(PR_SET_SECCOMP, 2, pointer, 0, 0))


if __name__ == "__main__":
    main()
