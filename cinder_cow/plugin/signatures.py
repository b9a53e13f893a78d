# SPDX-License-Identifier: Apache-2.0
"""Signatures as Glance's records have them, by Cinder's key manager.

Cinder verifies them of what it downloads, with ``verify_glance_signatures``.
What was signed is a hash: so one that we have anyway need not be made again.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json

from cinder import context as cinder_context
from cryptography import exceptions as crypto_errors
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric import utils
from cursive import exception as cursive_exception
from cursive import signature_utils
from oslo_config import cfg

from cinder_cow import exception
from cinder_cow import image_info
from cinder_cow.refusal import Reason

CONF = cfg.CONF

# Properties of an image.
_NAMES = (
    signature_utils.SIGNATURE,
    signature_utils.HASH_METHOD,
    signature_utils.KEY_TYPE,
    signature_utils.CERT_UUID,
)


class IncompleteError(exception.ImageError):
    """Some of the properties are there, and some are not."""


def are_verified() -> bool:
    """Tell whether Cinder is to verify the signatures that there are."""
    return bool(CONF.verify_glance_signatures != 'disabled')


def with_signature(
    context: cinder_context.RequestContext, image: image_info.ImageInfo
) -> image_info.ImageInfo:
    """Give an image the signature of its properties, if it has one.

    :param context: of who asks; certificates are read by its rights
    :raises IncompleteError: SIGNATURE_INVALID
    :raises ImageError: SIGNATURE_INVALID, of a hash that nobody knows
    """
    told = {name: image.properties.get(name) for name in _NAMES}
    missing = [name for name, value in told.items() if value is None]
    if len(missing) == len(_NAMES):
        return image
    if missing:
        raise IncompleteError.because(
            Reason.SIGNATURE_INVALID,
            image=image.label,
            problem=f'it has no property {missing[0]}',
        )
    signature = Signature(context, image.label, told)
    return dataclasses.replace(image, signature=signature)


class Signature:
    """See ``Signature`` of :mod:`cinder_cow.image_info`."""

    def __init__(
        self,
        context: cinder_context.RequestContext,
        label: str,
        told: Mapping[str, str | None],
    ) -> None:
        self._context = context
        self._label = label
        self._told = told
        words = json.dumps([told[name] for name in _NAMES])
        self.identity = hashlib.sha256(words.encode()).hexdigest()
        try:
            self._hash: hashes.HashAlgorithm = signature_utils.get_hash_method(
                told[signature_utils.HASH_METHOD]
            )
        except cursive_exception.SignatureVerificationError as error:
            raise self._invalid(str(error)) from None
        self.algorithm = self._hash.name

    def check(self, digest: bytes) -> None:
        told = self._told
        try:
            signature = signature_utils.get_signature(
                told[signature_utils.SIGNATURE]
            )
            kind = signature_utils.SignatureKeyType.lookup(
                told[signature_utils.KEY_TYPE]
            )
            key = signature_utils.get_public_key(
                self._context, told[signature_utils.CERT_UUID], kind
            )
            _verify(key, signature, digest, self._hash)
        except crypto_errors.InvalidSignature:
            raise self._invalid('its bytes are not those signed') from None
        except cursive_exception.SignatureVerificationError as error:
            raise self._invalid(str(error)) from None
        except Exception as error:
            # Of the key manager, and of what it keeps: it may be anything.
            raise self._invalid(f'{type(error).__name__}: {error}') from error

    def _invalid(self, problem: str) -> exception.ImageError:
        return exception.ImageError.because(
            Reason.SIGNATURE_INVALID, image=self._label, problem=problem
        )


def _verify(
    key: object, signature: bytes, digest: bytes, hash_: hashes.HashAlgorithm
) -> None:
    """Verify the signature of a hash, as Glance's documentation defines it.

    :raises InvalidSignature: it is that of another one
    """
    made = utils.Prehashed(hash_)
    if isinstance(key, rsa.RSAPublicKey):
        pss = padding.PSS(padding.MGF1(hash_), padding.PSS.MAX_LENGTH)
        key.verify(signature, digest, pss, made)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, digest, ec.ECDSA(made))
    elif isinstance(key, dsa.DSAPublicKey):
        key.verify(signature, digest, made)
    else:
        raise crypto_errors.InvalidSignature
