"""Keys, certificates, signing requests and revocation lists, to PEM and back. Nothing but EC P-256 and SHA-256."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.certificates import files
from shoal.errors import SettingsError

PEM = serialization.Encoding.PEM


def new_key() -> ec.EllipticCurvePrivateKey:
    """EC P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS 8, not encrypted: a node starts with nobody there to type."""
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def request_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signing request for a key. It names nobody: who it is for the authority decides."""
    request = x509.CertificateSigningRequestBuilder().subject_name(name("-")).sign(key, hashes.SHA256())
    return request.public_bytes(PEM)


def certificate_of(path: Path) -> x509.Certificate:
    """Of a PEM file."""
    try:
        return x509.load_pem_x509_certificate(files.read(path))
    except ValueError:
        raise SettingsError(f"{path} holds no certificate") from None


def key_of(path: Path) -> ec.EllipticCurvePrivateKey:
    """Of a PEM file that its owner alone can read."""
    content = files.read(path, private=True)
    try:
        key = serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise SettingsError(f"{path} holds no EC P-256 key without a password")
    return key


def public_key_of(request: bytes) -> ec.EllipticCurvePublicKey:
    """Of a signing request, whose sender has the private one."""
    try:
        read = x509.load_pem_x509_csr(request)
        public = read.public_key() if read.is_signature_valid else None
    except (ValueError, UnsupportedAlgorithm):
        public = None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise SettingsError("expected a signing request for an EC P-256 key, signed by that key")
    return public


def check_signed(certificate: x509.Certificate, authority: x509.Certificate) -> None:
    """Raises SettingsError unless that authority has signed it."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise SettingsError("its certificate is not signed by its authority") from None


def read_crl(content: bytes, authority: x509.Certificate) -> x509.CertificateRevocationList:
    """A revocation list. Raises SettingsError unless that authority has signed it."""
    try:
        crl = x509.load_pem_x509_crl(content)
        public = authority.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        signed = crl.issuer == authority.subject and crl.is_signature_valid(public)
    except ValueError:
        raise SettingsError(f"its {len(content)} bytes of a revocation list are none in PEM: copy it again") from None
    if not signed:
        raise SettingsError("its revocation list is not signed by its authority")
    return crl


def crl_number(crl: x509.CertificateRevocationList) -> int:
    """It grows with every change."""
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def name(common: str) -> x509.Name:
    """Of a subject, for those who read certificates with other tools; nothing here looks at it."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
