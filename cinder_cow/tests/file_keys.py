# SPDX-License-Identifier: Apache-2.0
"""A key manager of certificates in files: what Barbican is to Cinder.

They are in the directory "keys" of ``state_path``, in DER, named as their
ids. That one is given is logged.
"""

# mypy: disable-error-code="import-not-found"

import pathlib

from castellan.common import exception
from castellan.common.objects import x_509
from castellan.key_manager import key_manager
from oslo_log import log as logging

LOG = logging.getLogger(__name__)


class FileKeys(key_manager.KeyManager):
    def __init__(self, configuration):
        self._directory = pathlib.Path(configuration.state_path) / 'keys'

    def get(self, context, managed_object_id, metadata_only=False):
        path = self._directory / pathlib.PurePath(managed_object_id).name
        try:
            found = path.read_bytes()
        except FileNotFoundError:
            raise exception.ManagedObjectNotFoundError(
                uuid=managed_object_id
            ) from None
        LOG.info('Certificate %s was read', managed_object_id)
        return x_509.X509(found)

    def _no(self, *_args, **_options):
        raise NotImplementedError

    create_key = create_key_pair = store = delete = list = _no
    add_consumer = remove_consumer = _no
