"""What the tests of certificates share: an authority with members, and certificates as no authority would make them."""

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from shoal.certificates import credentials, encoding, files
from shoal.certificates.authority import Authority
from shoal.certificates.encoding import PEM
from shoal.certificates.member import host, uri
from shoal.transport.tls import Tls

DAY = datetime.timedelta(days=1)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class Members:
    """An authority and the folders of those whom it knows."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.make(folder / "ca")

    def issue(self, name: str, *, role: str = "node", shoal: str = "default", days: int = 365) -> Path:
        """The folder of a new member."""
        key = encoding.new_key()
        request = encoding.request_of(key)
        certificate = self.authority.issue(request, shoal=shoal, role=role, name=name, days=days)
        return self._stored(f"{name}-{shoal}", certificate, encoding.pem_of(key))

    def issue_from_to(
        self, name: str, begins: datetime.datetime, ends: datetime.datetime, *, role: str = "node"
    ) -> Path:
        """A certificate for any span, signed by hand."""
        key, serial = encoding.new_key(), x509.random_serial_number()
        names = [x509.DNSName(host(serial)), x509.UniformResourceIdentifier(uri("default", role, name))]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        signer = encoding.key_of(self.authority.folder / "ca.key")
        certificate = (
            x509.CertificateBuilder()
            .subject_name(encoding.name(name))
            .issuer_name(self.authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .sign(signer, hashes.SHA256())
        )
        return self._stored(name, certificate.public_bytes(PEM), encoding.pem_of(key))

    def renew(self, folder: Path) -> None:
        """Puts the next certificate into a member's folder."""
        held = credentials.Credentials(folder).member
        request = encoding.request_of(encoding.key_of(folder / "member.key"))
        certificate = self.authority.renew(request, held)
        credentials.store(folder, authority=self.authority.pem, certificate=certificate, crl=self.authority.crl)

    def revoke(self, name: str, *folders: Path) -> None:
        """And gives the new list to those folders."""
        self.authority.revoke("default", name)
        for folder in folders:
            self.tell(folder)

    def tell(self, folder: Path) -> None:
        """Gives the newest list to a member, as a copy does."""
        files.write(folder / "crl.pem", self.authority.crl)

    def _stored(self, name: str, certificate: bytes, key: bytes) -> Path:
        folder = self.folder / name
        parts = {"authority": self.authority.pem, "certificate": certificate, "crl": self.authority.crl}
        credentials.store(folder, key=key, **parts)
        return folder


def tls(folder: Path) -> Tls:
    """Of a member's folder."""
    return Tls(credentials.Credentials(folder))
