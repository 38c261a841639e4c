"""What a certificate says of its holder: shoal, role and name, from when until when."""

import datetime
import re
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from shoal.errors import Untrusted

ROLES = {
    "node": "trains: may call and be called",
    "coordinator": "serves nodes: may call and be called",
    "observer": "looks on: may ask for health and reflection, and for nothing else",
}
NAME = re.compile(r"[A-Za-z0-9_-]{1,56}")
SHOAL = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Member(NamedTuple):
    """One certificate. Two of them with the same shoal, role and name are one member's, before and after a renewal."""

    shoal: str
    role: str  # a key of ROLES
    name: str
    serial: int
    begins: datetime.datetime  # UTC
    ends: datetime.datetime  # UTC
    fingerprint: str  # SHA-256 of the certificate, hex

    @property
    def uri(self) -> str:
        """Its subject alternative name for programs."""
        return uri(self.shoal, self.role, self.name)

    @property
    def host(self) -> str:
        """The DNS name that no other certificate has."""
        return host(self.serial)

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.role} {self.name} of shoal {self.shoal}"

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Raises Untrusted for a certificate that is no member's: its signature is not looked at here."""
        try:
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uris = names.get_values_for_type(x509.UniformResourceIdentifier)
            hosts = names.get_values_for_type(x509.DNSName)
        except (x509.ExtensionNotFound, ValueError):
            uris, hosts = [], []
        said = re.fullmatch(rf"shoal://({SHOAL.pattern})/({'|'.join(ROLES)})/({NAME.pattern})", "".join(uris))
        if len(uris) != 1 or said is None or hosts != [host(certificate.serial_number)]:
            raise Untrusted(f"its certificate names no member of a shoal (it has {(uris + hosts)[:4]})")
        return cls(
            shoal=said[1],
            role=said[2],
            name=said[3],
            serial=certificate.serial_number,
            begins=certificate.not_valid_before_utc,
            ends=certificate.not_valid_after_utc,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        )


def uri(shoal: str, role: str, name: str) -> str:
    """`shoal://SHOAL/ROLE/NAME`."""
    return f"shoal://{shoal}/{role}/{name}"


def host(serial: int) -> str:
    """Nodes are reached by addresses that no certificate could know; so each has a name by its own number."""
    return f"{serial:x}.shoal"
