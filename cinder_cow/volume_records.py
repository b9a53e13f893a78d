# SPDX-License-Identifier: Apache-2.0
"""What Cinder knows of the volumes in which Glance keeps images."""

import dataclasses
from typing import Protocol


@dataclasses.dataclass(frozen=True, slots=True)
class VolumeRecord:
    """What Cinder says of a volume.

    :param name: in its back end
    :param backend: name of its back end
    :param project_id: whose it is
    :param image_id: of the image that it holds, as Glance wrote there
    :param readonly: Cinder attaches it to read only
    :param attached: it is attached somewhere now
    """

    name: str
    backend: str
    project_id: str
    image_id: str
    readonly: bool
    attached: bool


class VolumeRecords(Protocol):
    """Asks Cinder."""

    def volume(self, volume_id: str) -> VolumeRecord | None:
        """Return the record of a volume; None if there is none.

        :raises BackendError: Cinder does not answer
        """
