"""The folder with the key that signs: issues certificates, revokes them, and knows all that it has issued.

ca.pem  ca.key          the authority itself
issued/SERIAL.pem       each certificate that was given out
crl.pem                 the list of those that hold no more (an X.509 CRL)
tokens/                 first certificates that were promised (`tokens.py`)
"""

import contextlib
import datetime
import fcntl
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from shoal.certificates import encoding, files, member
from shoal.certificates.encoding import PEM
from shoal.certificates.member import Member
from shoal.errors import SettingsError

AUTHORITY_DAYS = 3650
MEMBER_DAYS = 365
LISTENER_HOST = "authority.shoal"
"""DNS name of the certificate under which the authority itself listens; no member's is like it."""
SKEW = datetime.timedelta(minutes=5)
"""Certificates begin so much before now: clocks differ."""


class Authority:
    """Every method raises SettingsError for what cannot be, or cannot be written."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.folder, self.certificate, self._key = folder, certificate, key

    @classmethod
    def of(cls, folder: Path) -> "Authority":
        """That of a folder. Raises SettingsError where there is none."""
        if not (folder / "ca.key").exists():
            raise SettingsError(f"{folder} is no authority: make one with `shoal certs init {folder}`")
        certificate, key = encoding.certificate_of(folder / "ca.pem"), encoding.key_of(folder / "ca.key")
        if key.public_key() != certificate.public_key():
            raise SettingsError(f"{folder}/ca.key is not the key of {folder}/ca.pem: take both from one backup")
        return cls(folder, certificate, key)

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        """A new one. Raises SettingsError when there is one already: its members would know it no more."""
        files.private_folder(folder)
        if (folder / "ca.key").exists():
            raise SettingsError(f"{folder} holds an authority already; remove it to begin anew, or give another folder")
        key, name = encoding.new_key(), encoding.name("shoal authority")
        certificate = (
            _builder(name, name, key.public_key(), x509.random_serial_number(), _days(AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        for inner in ("issued", "tokens"):
            files.private_folder(folder / inner)
        made = cls(folder, certificate, key)
        files.write(folder / "ca.pem", made.pem)
        made._publish({}, number=1)
        files.write(folder / "ca.key", encoding.pem_of(key), private=True)  # last: without it there is no authority
        return made

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(PEM)

    @property
    def fingerprint(self) -> bytes:
        """(32,) SHA-256 of its certificate."""
        return self.certificate.fingerprint(hashes.SHA256())

    @property
    def crl(self) -> bytes:
        """The list of revoked certificates, as it is now."""
        return files.read(self.folder / "crl.pem")

    def issued(self) -> list[Member]:
        """All certificates ever given out, by shoal, name and start."""
        found = [Member.of(encoding.certificate_of(path)) for path in (self.folder / "issued").glob("*.pem")]
        return sorted(found, key=lambda m: (m.shoal, m.name, m.begins, m.serial))

    def revoked(self) -> set[int]:
        """Serial numbers of the list."""
        return {entry.serial_number for entry in encoding.read_crl(self.crl, self.certificate)}

    def in_force(self, shoal: str, name: str) -> list[Member]:
        """Certificates of that name which still hold. Names that differ in case alone count as one."""
        now, revoked = datetime.datetime.now(datetime.UTC), self.revoked()
        same = [m for m in self.issued() if (m.shoal, m.name.casefold()) == (shoal, name.casefold())]
        return [m for m in same if m.ends > now and m.serial not in revoked]

    def issue(self, request: bytes, *, shoal: str, role: str, name: str, days: int = MEMBER_DAYS) -> bytes:
        """A new member's certificate for the key of a signing request, both PEM. One name, one holder."""
        check_names(shoal, role, name)
        with self._alone():
            if self.in_force(shoal, name):
                raise SettingsError(
                    f"{name} of shoal {shoal} has a certificate: `shoal certs renew` prolongs it, `shoal certs revoke` "
                    "ends it if its key is lost; another machine needs another name"
                )
            return self._sign(encoding.public_key_of(request), shoal, role, name, days)

    def renew(self, request: bytes, held: Member, days: int = MEMBER_DAYS) -> bytes:
        """Another certificate for who holds one, by its serial number. The old one holds until it ends."""
        with self._alone():
            now = [m for m in self.in_force(held.shoal, held.name) if m.serial == held.serial]
            if not now:
                raise SettingsError(f"the certificate of {held.words} is revoked, or has ended: issue a new one")
            return self._sign(encoding.public_key_of(request), held.shoal, held.role, held.name, days)

    def revoke(self, shoal: str, name: str) -> list[Member]:
        """Ends all certificates of that name; a new one may be issued then."""
        with self._alone():
            ended = self.in_force(shoal, name)
            if not ended:
                raise SettingsError(
                    f"no certificate of {name!r} in shoal {shoal!r} is in force; `shoal certs show` lists"
                )
            crl, now = encoding.read_crl(self.crl, self.certificate), datetime.datetime.now(datetime.UTC)
            before = {entry.serial_number: entry.revocation_date_utc for entry in crl}
            revoked = before | dict.fromkeys((m.serial for m in ended), now)
            self._publish(revoked, encoding.crl_number(crl) + 1)
        return ended

    def listener(self, public: ec.EllipticCurvePublicKey) -> bytes:
        """A certificate for the authority's own port, made at each start of it; it makes nobody a member."""
        subject, serial = encoding.name(LISTENER_HOST), x509.random_serial_number()
        builder = _builder(subject, self.certificate.subject, public, serial, _days(MEMBER_DAYS))
        names = x509.SubjectAlternativeName([x509.DNSName(LISTENER_HOST)])
        return self._finish(builder, names, [ExtendedKeyUsageOID.SERVER_AUTH]).public_bytes(PEM)

    def _sign(self, public: ec.EllipticCurvePublicKey, shoal: str, role: str, name: str, days: int) -> bytes:
        if not 1 <= days <= AUTHORITY_DAYS:
            raise SettingsError(f"days = {days} must be from 1 to {AUTHORITY_DAYS}")
        serial, ends = x509.random_serial_number(), min(_days(days), self.certificate.not_valid_after_utc)
        builder = _builder(encoding.name(name), self.certificate.subject, public, serial, ends)
        names = [x509.DNSName(member.host(serial)), x509.UniformResourceIdentifier(member.uri(shoal, role, name))]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "observer":  # which nobody may take for a node
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = self._finish(builder, x509.SubjectAlternativeName(names), uses)
        files.write(self.folder / "issued" / f"{serial:x}.pem", certificate.public_bytes(PEM))
        return certificate.public_bytes(PEM)

    def _finish(
        self, builder: x509.CertificateBuilder, names: x509.SubjectAlternativeName, uses: list[x509.ObjectIdentifier]
    ) -> x509.Certificate:
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(names, critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def _publish(self, revoked: dict[int, datetime.datetime], number: int) -> None:
        """Writes the list anew."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(datetime.datetime.now(datetime.UTC) - SKEW)
            .next_update(self.certificate.not_valid_after_utc)  # carried by hand: an old list must not end a run
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial, at in sorted(revoked.items()):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()
            builder = builder.add_revoked_certificate(entry)
        files.write(self.folder / "crl.pem", builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time: two must not give out one name."""
        with (self.folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def check_names(shoal: str, role: str, name: str) -> None:
    """Raises SettingsError for what no certificate may hold."""
    if member.SHOAL.fullmatch(shoal) is None:
        raise SettingsError(f"shoal = {shoal!r} must be 1 to 64 letters, digits, -, _ or .")
    if member.NAME.fullmatch(name) is None:
        raise SettingsError(f"name = {name!r} must be 1 to 56 letters, digits, - or _")
    if role not in member.ROLES:
        raise SettingsError(f"unknown role {role!r}; known: {', '.join(member.ROLES)}")


def _days(days: int) -> datetime.datetime:
    """So many from now."""
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, serial: int, ends: datetime.datetime
) -> x509.CertificateBuilder:
    begins = datetime.datetime.now(datetime.UTC) - SKEW
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    return builder.serial_number(serial).not_valid_before(begins).not_valid_after(ends)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
