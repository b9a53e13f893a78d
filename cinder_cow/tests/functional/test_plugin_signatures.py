# SPDX-License-Identifier: Apache-2.0
"""Signatures of images, in a real Cinder that is told to verify them."""

import base64
import datetime
from typing import ClassVar
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
import ddt
from oslo_utils import units

from cinder_cow.tests import corpus
from cinder_cow.tests.functional import test_plugin_telling

KEY_MANAGER = 'cinder_cow.tests.file_keys.FileKeys'
HASHES = {'SHA-256': hashes.SHA256(), 'SHA-512': hashes.SHA512()}


class Signer:
    """Has a key, and a certificate in Cinder's key manager."""

    def __init__(self, cinder, kind):
        self.kind = kind
        self.certificate = str(uuid.uuid4())
        self.key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
        if kind == 'RSA-PSS':
            self.key = rsa.generate_private_key(65537, 2048)
        else:
            self.key = ec.generate_private_key(ec.SECP384R1())
        keys = cinder.directory / 'state/keys'
        keys.mkdir(exist_ok=True)
        (keys / self.certificate).write_bytes(self._certificate())

    def properties(self, signed, method='SHA-256'):
        """Tell the properties of an image that has such bytes."""
        hash_ = HASHES[method]
        if isinstance(self.key, rsa.RSAPrivateKey):
            pss = padding.PSS(padding.MGF1(hash_), padding.PSS.MAX_LENGTH)
            signature = self.key.sign(signed, pss, hash_)
        else:
            signature = self.key.sign(signed, ec.ECDSA(hash_))
        return {
            'img_signature': base64.b64encode(signature).decode(),
            'img_signature_hash_method': method,
            'img_signature_key_type': self.kind,
            'img_signature_certificate_uuid': self.certificate,
        }

    def _certificate(self):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'a signer')])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.DER)


class SigningCase(test_plugin_telling.TellingCase):
    settings: ClassVar = {
        'DEFAULT': {'verify_glance_signatures': 'enabled'},
        'key_manager': {'backend': KEY_MANAGER},
    }

    def signed(self, properties, disk_format='raw', **options):
        """Store an image, and sign it: Glance has no such key manager."""
        image_id = self.stored(disk_format, **options)
        self.sign(image_id, properties)
        return image_id

    def sign(self, image_id, properties):
        kind = 'application/openstack-images-v2.1-json-patch'
        self.glance.do(
            'PATCH',
            f'/v2/images/{image_id}',
            headers={'Content-Type': kind},
            json=[
                {'op': 'add', 'path': f'/{name}', 'value': value}
                for name, value in properties.items()
            ],
        )


@ddt.ddt
class TestSignatures(SigningCase):
    def signer(self, kind='ECC_SECP384R1'):
        return Signer(self.cinder, kind)

    def looked_up(self, signer):
        """Tell how often a certificate was read."""
        words = f'Certificate {signer.certificate} was read'
        return self.cinder.log.count(words)

    def qcow2_file(self, content):
        path = self.directory() / 'image'
        corpus.Image('qcow2', corpus.converted(content)).make(path)
        return path

    def assert_verified(self, volume, verified='True'):
        found = self.cinder.show(volume)['volume_image_metadata']
        self.assertEqual(verified, found['signature_verified'])

    def assert_refused(self, image_id, words, error):
        before = set(self.bases())
        volume = self.begun(image_id=image_id)
        self.assert_failed(volume)
        self.assert_told(volume, 'refused', words, 'Upload the image again')
        self.assert_message(volume, 'signature verification failed', 'ERROR')
        self.assertEqual(before, set(self.bases()))
        self.assertIn(error, self.cinder.log)
        self.assertNotIn('is left to Cinder', self.cinder.log)
        return volume

    @ddt.data(
        ('RSA-PSS', 'SHA-256'),
        ('RSA-PSS', 'SHA-512'),
        ('ECC_SECP384R1', 'SHA-256'),
    )
    @ddt.unpack
    def test_raw_in_the_cluster(self, kind, method):
        signer, content = self.signer(kind), corpus.noise(units.Mi)
        told = signer.properties(content, method)
        image_id = self.signed(told, data=content)
        parent = ('images', image_id, 'snap')
        for _which in ('it is read', 'the verdict is remembered'):
            volume = self.created(image_id=image_id)
            self.assert_content(volume, content, parent)
            self.assert_verified(volume)
            self.assertEqual(1, self.looked_up(signer))
        self.assertEqual([], self.glance.downloads(image_id))

    @ddt.data('SHA-256', 'SHA-512')
    def test_a_base_is_verified_while_it_is_fetched(self, method):
        signer, content = self.signer(), corpus.noise(units.Mi)
        path = self.qcow2_file(content)
        told = signer.properties(path.read_bytes(), method)
        image_id = self.signed(told, 'qcow2', path=path, store='file1')
        before = set(self.bases())
        for _which in ('the base is made', 'it is there'):
            volume = self.created(image_id=image_id)
            self.assert_content(volume, content, self.new_base(before))
            self.assert_verified(volume)
            self.assertEqual(1, self.looked_up(signer))
        # The second time only its last byte.
        (whole,) = [
            request
            for request in self.glance.downloads(image_id)
            if request.range is None
        ]
        self.assertEqual(path.stat().st_size, whole.size)

    def test_a_qcow2_in_the_cluster(self):
        signer, content = self.signer(), corpus.noise(units.Mi)
        path = self.qcow2_file(content)
        told = signer.properties(path.read_bytes())
        image_id = self.signed(told, 'qcow2', path=path)
        before = set(self.bases())
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content, self.new_base(before))
        self.assert_verified(volume)
        self.assertEqual([], self.glance.downloads(image_id))

    @ddt.data('SHA-256', 'SHA-512')
    def test_a_base_that_was_made_without(self, method):
        # As before the option was on. Of SHA-512 its hash is known.
        signer, content = self.signer(), corpus.noise(units.Mi)
        path = self.qcow2_file(content)
        image_id = self.stored('qcow2', path=path)
        before = set(self.bases())
        volume = self.created(image_id=image_id)
        self.assert_verified(volume, 'False')
        self.sign(image_id, signer.properties(path.read_bytes(), method))
        for _which in ('it is verified', 'that is kept'):
            volume = self.created(image_id=image_id)
            self.assert_content(volume, content, self.new_base(before))
            self.assert_verified(volume)
            self.assertEqual(1, self.looked_up(signer))
        self.sign(image_id, signer.properties(b'other bytes'))
        volume = self.begun(image_id=image_id)
        self.assert_failed(volume)
        self.assert_told(volume, 'refused', 'not those signed', 'Upload')

    def test_signature_invalid(self):
        content = corpus.noise(units.Mi)
        told = self.signer().properties(content[1:])
        image_id = self.signed(told, data=content)
        self.assert_refused(
            image_id, 'not those signed', 'ImageSignatureVerificationException'
        )
        # The remedy.
        told = self.signer().properties(content)
        volume = self.created(image_id=self.signed(told, data=content))
        self.assert_verified(volume)

    def test_a_bad_signature_of_a_qcow2(self):
        signer = self.signer()
        path = self.qcow2_file(corpus.noise(units.Mi))
        told = signer.properties(b'other bytes')
        image_id = self.signed(told, 'qcow2', path=path, store='file1')
        self.assert_refused(
            image_id, 'not those signed', 'ImageSignatureVerificationException'
        )

    def test_no_certificate(self):
        content = corpus.noise(units.Mi)
        told = self.signer().properties(content)
        told['img_signature_certificate_uuid'] = str(uuid.uuid4())
        self.assert_refused(
            self.signed(told, data=content),
            'Certificate not found',
            'ImageSignatureVerificationException',
        )

    @ddt.data(
        ('img_signature_hash_method', 'MD5', 'hash method'),
        ('img_signature_key_type', 'ROT13', 'key type'),
        ('img_signature', '\x1b[2J*', 'signature_invalid'),
    )
    @ddt.unpack
    def test_hostile_properties(self, name, value, words):
        content = corpus.noise(units.Mi)
        told = {**self.signer().properties(content), name: value}
        self.assert_refused(
            self.signed(told, data=content),
            words,
            'ImageSignatureVerificationException',
        )

    def test_incomplete(self):
        content = corpus.noise(units.Mi)
        told = self.signer().properties(content)
        # What is left tells that it is signed.
        del told['img_signature']
        image_id = self.signed(told, data=content)
        self.assert_refused(
            image_id, 'no property img_signature', 'InvalidSignatureImage'
        )

    def test_no_signature(self):
        content = corpus.noise(units.Mi)
        image_id = self.stored(data=content)
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content, ('images', image_id, 'snap'))
        self.assert_verified(volume, 'False')


class TestSwitchedOff(SigningCase):
    settings: ClassVar = {
        'DEFAULT': {'verify_glance_signatures': 'disabled'},
        'key_manager': {'backend': KEY_MANAGER},
    }

    def test_nothing_is_verified(self):
        signer = Signer(self.cinder, 'ECC_SECP384R1')
        content = corpus.noise(units.Mi)
        image_id = self.signed(signer.properties(b'other'), data=content)
        volume = self.created(image_id=image_id)
        self.assert_content(volume, content, ('images', image_id, 'snap'))
        found = self.cinder.show(volume)['volume_image_metadata']
        self.assertNotIn('signature_verified', found)
