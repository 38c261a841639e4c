"""A member's folder, which `--tls DIR` names: its own certificate and key, its authority, and who is revoked.

    ca.pem  member.pem  member.key  crl.pem

All four are read again when they change, and only as a set that fits together: a file that is being replaced, or
cannot be used, leaves what was read before.
"""

import datetime
import ssl
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from shoal.certificates import encoding, files
from shoal.certificates.encoding import PEM
from shoal.certificates.member import Member
from shoal.errors import SettingsError, Untrusted

EXPIRES_SOON = datetime.timedelta(days=7)
FILES = ("ca.pem", "member.pem", "member.key", "crl.pem")


class _Read(NamedTuple):
    """What the files held, as one."""

    authority: x509.Certificate
    certificate: bytes
    key: bytes
    member: Member
    revoked: frozenset[int]
    crl_number: int
    client: ssl.SSLContext


class Credentials:
    """Raises SettingsError, which names the file, for a folder that cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp = self._stamps()
        self._read = _read(folder)

    @property
    def member(self) -> Member:
        """Who we are."""
        return self._read.member

    @property
    def chain(self) -> tuple[bytes, bytes, bytes]:
        """PEM of the authority, of our certificate, and of its key."""
        return self._read.authority.public_bytes(PEM), self._read.certificate, self._read.key

    @property
    def revoked(self) -> frozenset[int]:
        """Serial numbers that hold no more."""
        return self._read.revoked

    @property
    def client(self) -> ssl.SSLContext:
        """For looking at who listens somewhere: TLS 1.3, our certificate, and theirs signed by our authority."""
        return self._read.client

    def refresh(self) -> str:
        """Reads what has changed, and says so; empty while nothing has. Raises SettingsError, once for each change, for
        what cannot be used: then what was read before still holds."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return ""
        self._stamp = stamp
        before = self._read
        read = _read(self.folder)
        if read.authority != before.authority or read.member.uri != before.member.uri:
            raise SettingsError(f"{self.folder} is of {read.member.words} now, which needs a new start")
        if read.crl_number < before.crl_number:
            number, earlier = read.crl_number, before.crl_number
            raise SettingsError(f"{self.folder}/crl.pem is number {number}, older than {earlier}: copy the newest")
        self._read = read
        until = f"{read.member.ends:%Y-%m-%d %H:%M} UTC"
        return f"{self.folder} read again: certificate until {until}, {len(read.revoked)} revoked"

    def problem(self, other: Member) -> str | None:
        """Why another's certificate does not hold here, or holds no more; None if it does. That our authority has
        signed it was seen when the connection was made."""
        now = datetime.datetime.now(datetime.UTC)
        if other.serial in self._read.revoked:
            return f"the certificate of {other.words} is revoked"
        if now >= other.ends:
            return f"the certificate of {other.words} ended at {other.ends:%Y-%m-%d %H:%M} UTC: it needs another"
        if now < other.begins:
            begins = f"{other.begins:%Y-%m-%d %H:%M} UTC"
            return f"the certificate of {other.words} begins at {begins}: are all clocks right?"
        if other.shoal != self.member.shoal:
            return f"its certificate is for shoal {other.shoal}, this is shoal {self.member.shoal}"
        return None

    def warning(self) -> str:
        """What is wrong, or soon will be, with our own certificate; empty while all is well."""
        mine = self.member
        if (why := self.problem(mine)) is not None:
            return f"{why}; nobody will talk to this process"
        if mine.ends - datetime.datetime.now(datetime.UTC) < EXPIRES_SOON:
            until = f"{mine.ends:%Y-%m-%d %H:%M} UTC"
            return f"the certificate in {self.folder} ends at {until}: `shoal certs renew {self.folder}` prolongs it"
        return ""

    def fits(self, *, shoal: str, name: str, role: str | None) -> None:
        """Raises SettingsError unless a process with these settings may use them; an empty name fits all, as does no
        role."""
        mine = self.member
        if role is not None and mine.role != role:
            raise SettingsError(f"tls = {self.folder} is for a {mine.role}, this is a {role}: issue --role {role}")
        if mine.shoal != shoal:
            raise SettingsError(
                f"tls = {self.folder} is for shoal {mine.shoal}, not {shoal}: give --shoal {mine.shoal}"
            )
        if name and name != mine.name:
            raise SettingsError(f"tls = {self.folder} is for {mine.name}, not {name}: leave --name out")
        if (why := self.problem(mine)) is not None:
            remedy = "`shoal certs issue`, or a token and `shoal certs join`, makes another folder"
            raise SettingsError(f"tls = {self.folder}: {why}; {remedy}")

    def _stamps(self) -> list[tuple[int, int, int]]:
        """What changes when a file does."""
        return [_stamp(self.folder / name) for name in FILES]


def store(folder: Path, *, authority: bytes, certificate: bytes, crl: bytes, key: bytes | None = None) -> None:
    """Writes a member's folder, all PEM; without a key it has one already. The certificate comes last."""
    files.private_folder(folder)
    if key is not None:
        files.write(folder / "member.key", key, private=True)
    files.write(folder / "ca.pem", authority)
    files.write(folder / "crl.pem", crl)
    files.write(folder / "member.pem", certificate)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(folder: Path) -> _Read:
    if not (folder / "member.pem").exists():
        raise SettingsError(f"{folder} holds no certificate: `shoal certs issue` or `shoal certs join` makes one")
    authority, certificate = (encoding.certificate_of(folder / name) for name in ("ca.pem", "member.pem"))
    key = encoding.key_of(folder / "member.key")
    if certificate.public_key() != key.public_key():
        raise SettingsError(f"{folder}/member.key is not the key of {folder}/member.pem")
    try:
        encoding.check_signed(certificate, authority)
        member = Member.of(certificate)
        crl = encoding.read_crl(files.read(folder / "crl.pem"), authority)
    except (SettingsError, Untrusted) as error:
        raise SettingsError(f"{folder}: {error}") from None
    revoked = frozenset(entry.serial_number for entry in crl)
    chain = certificate.public_bytes(PEM), encoding.pem_of(key)
    return _Read(authority, *chain, member, revoked, encoding.crl_number(crl), _client(folder, authority))


def _client(folder: Path, authority: x509.Certificate) -> ssl.SSLContext:
    """Checks chain and dates; the names are for `Member.of`, as there is no host name to compare."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.load_verify_locations(cadata=authority.public_bytes(PEM).decode())
    context.set_alpn_protocols(["h2"])
    try:
        context.load_cert_chain(folder / "member.pem", folder / "member.key")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"{folder}: certificate and key cannot be used: {error}") from None
    return context
