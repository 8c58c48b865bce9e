"""Run PostgreSQL, which refuses to run as root, from a process that is root.

It runs as `nobody`, and its data belongs to `nobody` in a directory that only root may enter. So no other process of
`nobody` can reach the data, and no permission outside our data directory changes. To reach its files there, or a
checkout under /root, the server keeps one capability, the weakest that suffices. Its only client is a role without
superuser rights, whose statements cannot read files with that capability. The command `setpriv` of util-linux changes
the user.
"""

import os
import pwd
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from app.embedded.errors import EmbeddedServerError

CAPABILITIES = ("dac_read_search", "dac_override")  # an ordinary container grants only the second


@dataclass(frozen=True)
class Account:
    """The user that a server runs as; by default the user of this process.

    Attributes:
        prefix: command prefix that changes to the user.
        uid: the user's id; -1: the user of this process.
        gid: the group's id; -1: the group of this process.
    """

    prefix: tuple[str, ...] = ()
    uid: int = -1
    gid: int = -1

    def take_over(self, path: Path) -> None:
        """Make the account the owner of `path`.

        Raises:
            EmbeddedServerError: this process may not change the owner.
        """
        try:
            os.chown(path, self.uid, self.gid)
        except PermissionError as error:
            raise refusal() from error


def unprivileged_account(program: Path, directory: Path) -> Account:
    """Return the account for a program that refuses to run as root and works in `directory`.

    Raises:
        EmbeddedServerError: this process is root but cannot run the program as another user.
    """
    if os.geteuid() != 0:
        return Account()
    setpriv = shutil.which("setpriv")
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as error:
        raise refusal() from error
    if setpriv is None:
        raise refusal()
    for capability in CAPABILITIES:
        prefix = (
            setpriv,
            f"--reuid={nobody.pw_uid}",
            f"--regid={nobody.pw_gid}",
            "--clear-groups",
            "--securebits=+no_setuid_fixup",  # or else access(2) asks without the capability, and initdb uses it
            f"--inh-caps=-all,+{capability}",
            f"--ambient-caps=-all,+{capability}",
        )
        if can_work(prefix, program, directory):
            return Account(prefix, nobody.pw_uid, nobody.pw_gid)
    raise refusal()


def can_work(prefix: tuple[str, ...], program: Path, directory: Path) -> bool:
    """Return whether the program runs under this prefix and may enter the directory."""
    probe = ("sh", "-c", 'cd "$1" && "$0" --version', str(program), str(directory))
    return subprocess.run((*prefix, *probe), capture_output=True, check=False).returncode == 0


def refusal() -> EmbeddedServerError:
    """Return the error that says why PostgreSQL cannot run here, and what to do."""
    return EmbeddedServerError(
        "PostgreSQL refuses to run as root, and this process cannot run it as nobody, which requires the command "
        "setpriv (util-linux) and the capabilities SETUID, SETGID, SETPCAP, CHOWN and DAC_OVERRIDE. Run Modelpress as "
        "an ordinary user, or set MODELPRESS_DATABASE_URL to a PostgreSQL of your own."
    )
