"""The federation's own certificate authority: X.509 made so that OpenSSL's strict checks pass, and nothing more."""

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.base.errors import ConfigError
from shared.base.names import is_ip
from shared.trust.keys import fingerprint, private_pem

_SLACK = timedelta(hours=1)  # a certificate holds a little before it was made: clocks differ


def make_authority(
    federation: str, *, now: datetime, days: int, word: bytes | None = None
) -> tuple[bytes, ec.EllipticCurvePrivateKey, bytes]:
    """A new CA: its private key in PEM, encrypted if there is a passphrase, and as it is; its certificate in PEM."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name(federation, f"CA {fingerprint(key.public_key())[:8]}")
    certificate = (
        _begin(name, name, key, now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return private_pem(key, word), key, certificate.public_bytes(serialization.Encoding.PEM)


def make_server(
    signer: object, authority_pem: bytes, hosts: Sequence[str], *, federation: str, now: datetime, days: int
) -> tuple[bytes, bytes]:
    """The server's private key and certificate, for these names and IP addresses."""
    authority = x509.load_pem_x509_certificate(authority_pem)
    if not isinstance(signer, ec.EllipticCurvePrivateKey) or signer.public_key() != authority.public_key():
        raise ConfigError("ca: its key does not belong to its certificate")
    if now + timedelta(days=days) > authority.not_valid_after_utc:
        raise ConfigError(
            f"days={days}: the server's certificate would outlive its CA's; use fewer, or rotate ca first"
        )
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.IPAddress(ipaddress.ip_address(h)) if is_ip(h) else x509.DNSName(h) for h in dict.fromkeys(hosts)]
    certificate = (
        _begin(_name(federation, hosts[0][:64]), authority.subject, key, now, days, issuer=signer)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(signer, hashes.SHA384())
    )
    return private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Is it this CA's? By the key, since all CAs of a federation may share a name."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _begin(
    subject: x509.Name,
    issuer_name: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    days: int,
    *,
    issuer: ec.EllipticCurvePrivateKey | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer or key).public_key()), critical=False)
    )


def _name(federation: str, common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, common),
        ]
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
