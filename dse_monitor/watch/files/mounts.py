"""Is this folder on a network disk? There, change events never arrive and listings may be a minute old."""

from __future__ import annotations

import os
import re
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")
NETWORK = re.compile(
    r"^(nfs\d?|cifs|smb3?|smbfs|lustre|gpfs|mmfs|ceph|beegfs\w*|9p|afs|glusterfs|orangefs|pvfs2|panfs|wekafs|fuse(\..*)?)$"
)
LOCAL = re.compile(
    r"^(ext[234]|xfs|btrfs|zfs|tmpfs|ramfs|overlay|f2fs|bcachefs|apfs|hfs|vfat|exfat|ntfs3?|squashfs|virtiofs)$"
)


def filesystem(path: Path, mountinfo: Path = MOUNTINFO) -> str:
    """Type of the filesystem that holds ``path`` (which need not exist); empty if unknown."""
    try:
        lines = mountinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    wanted = os.path.realpath(path)
    longest, found = "", ""
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = _unescape(fields[4])
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(longest):  # of equal ones the later mount lies on top
            longest, found = point, after.split()[0]
    return found


def is_network(kind: str) -> bool:
    """Whether a filesystem type is reached over a network (or through FUSE, which may be)."""
    return bool(NETWORK.match(kind))


def settle_seconds(kind: str) -> float:
    """How long a file must lie still to count as written: 2 s on local disks, 15 s on network ones, else 5 s.

    nfs(5): a client may repeat an old size for some seconds; opening the file asks the server.
    """
    if is_network(kind):
        return 15.0
    return 2.0 if LOCAL.match(kind) else 5.0


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
