# SPDX-License-Identifier: Apache-2.0
"""Certificates that nobody but a test trusts."""

import dataclasses
import datetime
import ipaddress
import pathlib
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ('127.0.0.1', 'localhost')


@dataclasses.dataclass(frozen=True)
class Certificate:
    """A certificate and its key, each in a file (PEM)."""

    path: pathlib.Path
    key: pathlib.Path

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path, self.key)
        return context


def self_signed(
    directory: pathlib.Path,
    names: tuple[str, ...] = NAMES,
    days: int = 1,
) -> Certificate:
    """Make one in a directory; its path can be REQUESTS_CA_BUNDLE.

    :param names: hosts and addresses it is good for
    :param days: until it expires; negative: it has
    """
    key = ec.generate_private_key(ec.SECP256R1())
    made = Certificate(directory / 'certificate.pem', directory / 'key.pem')
    signed = _builder(key, names, days).sign(key, hashes.SHA256())
    made.path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    made.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return made


def _builder(
    key: ec.EllipticCurvePrivateKey, names: tuple[str, ...], days: int
) -> x509.CertificateBuilder:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'cow test')])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days)
    # The names are all that clients look for, also those that verify
    # strictly, as Python 3.13 does.
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - datetime.timedelta(abs(days) + 1))
        .not_valid_after(end)
        .add_extension(
            x509.SubjectAlternativeName([*map(_name, names)]), critical=False
        )
    )


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
