"""Promises of a first certificate: who has the token gets it, once, while it holds.

A token is 64 characters: 16 random bytes that only its holder has, and the fingerprint of the authority, by which the
holder knows whom it asks. The authority keeps a hash of the first part alone.
"""

import base64
import binascii
import contextlib
import hashlib
import json
import secrets
import time
from pathlib import Path
from typing import NamedTuple, Self

from shoal.certificates import files
from shoal.certificates.authority import Authority, check_names
from shoal.errors import SettingsError

SECRET_BYTES = 16
MINUTES_MOST = 7 * 24 * 60


class Token(NamedTuple):
    """What the two ends share, before they share an authority."""

    secret: bytes  # (16,)
    fingerprint: bytes  # (32,) of the authority's certificate, SHA-256

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(self.secret + self.fingerprint).decode()

    @classmethod
    def read(cls, text: str) -> Self:
        """Raises SettingsError for what is none."""
        try:
            raw = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        if len(raw) != SECRET_BYTES + 32:
            raise SettingsError("expected a token of 64 characters, as `shoal certs token` prints it")
        return cls(raw[:SECRET_BYTES], raw[SECRET_BYTES:])


class Promise(NamedTuple):
    """What a token is good for."""

    shoal: str
    role: str
    name: str
    days: int  # of the certificate
    until: float  # unix time


def promise(authority: Authority, shoal: str, role: str, name: str, days: int, minutes: int) -> Token:
    """A token for that member, which holds so many minutes."""
    check_names(shoal, role, name)
    if not 1 <= minutes <= MINUTES_MOST:
        raise SettingsError(f"minutes = {minutes} must be from 1 to {MINUTES_MOST}")
    _forget_ended(authority)
    token = Token(secrets.token_bytes(SECRET_BYTES), authority.fingerprint)
    content = Promise(shoal, role, name, days, time.time() + 60 * minutes)
    files.write(_path(authority, token.secret), json.dumps(content._asdict()).encode(), private=True)
    return token


def redeem(authority: Authority, secret: bytes) -> Promise:
    """What was promised to who has that secret; nobody gets it twice. Raises SettingsError."""
    path = _path(authority, secret)
    taken = path.with_suffix(".taken")
    try:
        path.rename(taken)  # of two who come at once, one finds it
    except FileNotFoundError:
        raise SettingsError("the token is unknown, or was used: `shoal certs token` makes a new one") from None
    found = Promise(**json.loads(files.read(taken, private=True)))
    taken.unlink()
    if found.until < time.time():
        raise SettingsError("the token has ended: `shoal certs token` makes a new one")
    return found


def _forget_ended(authority: Authority) -> None:
    """Promises that nobody came for."""
    for path in (authority.folder / "tokens").glob("*.json"):
        with contextlib.suppress(SettingsError):  # redeemed meanwhile
            if json.loads(files.read(path, private=True))["until"] < time.time():
                path.unlink(missing_ok=True)


def _path(authority: Authority, secret: bytes) -> Path:
    return authority.folder / "tokens" / f"{hashlib.sha256(secret).hexdigest()}.json"
