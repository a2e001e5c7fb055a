"""SQLite's locks do not hold on network drives: they are found and refused."""

import os
from pathlib import Path

from sayso.base.errors import UserError

NETWORK = (
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "glusterfs",
    "fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "beegfs", "gpfs", "davfs", "fuse.davfs",
    "fuse.rclone", "fuse.s3fs",
)  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")


def refuse_network(file: Path, mounts: str | None = None) -> None:
    """Refuse a database file on a network drive.

    Args:
        file: need not exist.
        mounts: text in the format of Linux' mountinfo; read from the system if not given. Other
            systems do not say, and nothing is refused there.
    Raises: UserError: naming the kind of drive.
    """
    if mounts is None:
        found = _MOUNTS.read_bytes() if _MOUNTS.exists() else b""
        mounts = os.fsdecode(found)
    kind = kind_of(file, mounts)
    if kind in NETWORK:
        raise UserError(
            f"{file} is on a network drive ({kind}), where SQLite can lose votes; put the study on "
            "a local disk, or give --db postgresql+psycopg://USER@HOST/NAME"
        )


def kind_of(file: Path, mounts: str) -> str:
    """The type of the file system that holds a file: that of its deepest mount point."""
    place, found = file.resolve(), [(0, "")]
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) > 4 and place.is_relative_to(_path(fields[4])):
            found.append((len(fields[4]), after.split()[0]))
    return max(found, key=lambda mount: mount[0])[1]


def _path(escaped: str) -> Path:
    """A mount point, in which blanks and the like are octal numbers."""
    return Path(escaped.encode().decode("unicode_escape"))
