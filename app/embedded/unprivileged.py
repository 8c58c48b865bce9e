"""Running PostgreSQL, which refuses to be root, when we are root.

It runs as `nobody`, and its data belongs to `nobody` inside a directory that only root may enter: no other process of
`nobody` gets at it, and no permission outside our data directory changes. To reach its files there, or a checkout
under /root, the server keeps one capability, the weaker that suffices. Its only client is a role without superuser
rights, so that no statement of ours can read files with it. `setpriv` of util-linux does the change of user.
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
    """The user a server runs as. The default is our own."""

    prefix: tuple[str, ...] = ()
    uid: int = -1
    gid: int = -1

    def take_over(self, path: Path) -> None:
        """Makes the account the owner of `path`.

        Raises:
            EmbeddedServerError: the process may not give files away.
        """
        try:
            os.chown(path, self.uid, self.gid)
        except PermissionError as error:
            raise refusal() from error


def unprivileged_account(program: Path, directory: Path) -> Account:
    """The account for a program that refuses to be root, and that works inside `directory`.

    Raises:
        EmbeddedServerError: we are root, but may not run the program as anyone else.
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
    """Whether the program runs under this prefix, and may enter the directory."""
    probe = ("sh", "-c", 'cd "$1" && "$0" --version', str(program), str(directory))
    return subprocess.run((*prefix, *probe), capture_output=True, check=False).returncode == 0


def refusal() -> EmbeddedServerError:
    return EmbeddedServerError(
        "PostgreSQL does not run as root, and this process cannot run it as nobody: that takes the command setpriv "
        "(util-linux) and the capabilities SETUID, SETGID, SETPCAP, CHOWN and DAC_OVERRIDE. Run Modelpress as a plain "
        "user, or set MODELPRESS_DATABASE_URL to a PostgreSQL of your own."
    )
