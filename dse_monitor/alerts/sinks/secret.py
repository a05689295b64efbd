"""Secrets are named, not written: `env:NAME` or `file:PATH`. The value is read when needed, kept nowhere."""

from __future__ import annotations

import os
from pathlib import Path

from dse_monitor.errors import OutputError


def read_secret(reference: str) -> str:
    """The value behind a reference, without surrounding white space.

    Args:
        reference: ``env:NAME`` for an environment variable, ``file:PATH`` for the first line of a file.

    Raises:
        OutputError: the reference has another form, or nothing is there. The value never appears in the text.
    """
    kind, _, place = reference.partition(":")
    if kind not in ("env", "file") or not place:
        raise OutputError(
            "a secret (an address with a token, a password) is given as env:NAME or file:PATH, "
            "so that it stands in no command line, log or record; found something else"
        )
    if kind == "env":
        value = os.environ.get(place, "").strip()
        if not value:
            raise OutputError(f"the environment variable {place} is not set; set it to the sink's address")
        return value
    try:
        lines = Path(place).expanduser().read_text(encoding="utf-8").strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(
            f"{place} cannot be read ({type(error).__name__}); expected the sink's address in it"
        ) from None
    if not lines:
        raise OutputError(f"{place} is empty; expected the sink's address on its first line")
    return lines[0].strip()
