# SPDX-License-Identifier: Apache-2.0
"""Why something is not possible: every reason, its sentence and its remedy.

The one home of what we say when we say no. Plans, drivers and errors hold a
:class:`Refusal`; the documentation's list of reasons is tested against this
file.
"""

from collections.abc import Mapping
import dataclasses
import enum
from typing import Any

from cinder_cow.i18n import _


class Reason(enum.Enum):
    """Why a candidate, an image or a request was refused.

    The value is the code printed and kept; the sentences are in ``_TEXTS``.
    """

    # The request
    INVALID_NAME = 'invalid_name'
    VOLUME_EXISTS = 'volume_exists'
    VOLUME_NOT_FOUND = 'volume_not_found'
    VOLUME_TOO_SMALL = 'volume_too_small'
    VOLUME_IN_USE = 'volume_in_use'
    VOLUME_HAS_SNAPSHOTS = 'volume_has_snapshots'
    SHRINK = 'shrink'
    EXPORT_EXISTS = 'export_exists'
    EXPORT_FAILED = 'export_failed'
    # The configuration
    BACKEND_UNKNOWN = 'backend_unknown'
    LAYOUT_UNKNOWN = 'layout_unknown'
    URL_UNSUPPORTED = 'url_unsupported'
    GLANCE_UNAVAILABLE = 'glance_unavailable'
    SCRATCH_UNUSABLE = 'scratch_unusable'
    COW_DISABLED = 'cow_disabled'
    FALLBACK_REFUSED = 'fallback_refused'
    NOT_CLONEABLE = 'not_cloneable'
    NO_BASE_KEEPING = 'no_base_keeping'
    NO_CHECKING = 'no_checking'
    TOOL_MISSING = 'tool_missing'
    CEPH_UNAVAILABLE = 'ceph_unavailable'
    NO_POOL = 'no_pool'
    # The image
    IMAGE_NOT_FOUND = 'image_not_found'
    IMAGE_NOT_ACTIVE = 'image_not_active'
    IMAGE_RECORD_INVALID = 'image_record_invalid'
    IMAGE_CHANGED = 'image_changed'
    SOURCE_DENIED = 'source_denied'
    SOURCE_FAILED = 'source_failed'
    SIZE_UNKNOWN = 'size_unknown'
    NOT_AN_IMAGE = 'not_an_image'
    EMPTY_IMAGE = 'empty_image'
    FORMAT_MISMATCH = 'format_mismatch'
    FORMAT_UNSUPPORTED = 'format_unsupported'
    BACKING_FILE = 'backing_file'
    DATA_FILE = 'data_file'
    UNKNOWN_FEATURES = 'unknown_features'
    ENCRYPTED = 'encrypted'
    OWN_KEY = 'own_key'
    SIGNATURE_INVALID = 'signature_invalid'
    IMAGE_CORRUPT = 'image_corrupt'
    IMAGE_TOO_LARGE = 'image_too_large'
    EXPANDS_TOO_FAR = 'expands_too_far'
    HASH_MISMATCH = 'hash_mismatch'
    HASH_UNKNOWN = 'hash_unknown'
    HASH_REQUIRED = 'hash_required'
    HAS_RECORD = 'has_record'
    LOCATIONS_HIDDEN = 'locations_hidden'
    LOCATION_INVALID = 'location_invalid'
    NOT_IN_BACKEND = 'not_in_backend'
    NO_SNAPSHOT = 'no_snapshot'
    OTHER_CLUSTER = 'other_cluster'
    NOT_RAW = 'not_raw'
    LOCATION_UNTRUSTED = 'location_untrusted'
    POOL_DENIED = 'pool_denied'
    POOL_NOT_FOUND = 'pool_not_found'
    LOCATION_NOT_FOUND = 'location_not_found'
    SNAPSHOT_NOT_FOUND = 'snapshot_not_found'
    SNAPSHOT_UNPROTECTED = 'snapshot_unprotected'
    # Bases
    NO_BASE = 'no_base'
    NO_IDENTITY = 'no_identity'
    BASE_NOT_FOUND = 'base_not_found'
    BASE_CHANGED = 'base_changed'
    MANIFEST_DAMAGED = 'manifest_damaged'
    BASE_IN_USE = 'base_in_use'
    BASE_LOST = 'base_lost'
    NOT_LINKABLE = 'not_linkable'
    # The back end, while at work
    NO_SPACE = 'no_space'
    NO_SCRATCH_SPACE = 'no_scratch_space'
    BUSY = 'busy'
    CEPH_TIMED_OUT = 'ceph_timed_out'
    CONVERSION_FAILED = 'conversion_failed'
    MKFS_FAILED = 'mkfs_failed'
    BACKEND_ERROR = 'backend_error'
    UNEXPECTED = 'unexpected'


@dataclasses.dataclass(frozen=True, slots=True)
class _Text:
    detail: str
    remedy: str


_TEXTS: dict[Reason, _Text] = {
    Reason.INVALID_NAME: _Text(
        _("'%(name)s' is not a volume name: %(problem)s"),
        _(
            'Use letters, digits and ".", "_", "+", "-", at most 200 of'
            ' them, beginning with a letter or digit and not with "cow-".'
        ),
    ),
    Reason.VOLUME_EXISTS: _Text(
        _("volume '%(volume)s' %(state)s"),
        _('Choose another name, or delete that volume first.'),
    ),
    Reason.VOLUME_NOT_FOUND: _Text(
        _("there is no volume '%(volume)s' in back end '%(backend)s'"),
        _('See "cinder-cow volume list" for the names.'),
    ),
    Reason.VOLUME_TOO_SMALL: _Text(
        _("image '%(image)s' needs %(needed)d bytes, the volume has %(size)d"),
        _('Make the volume at least %(needed_gib)d GiB large.'),
    ),
    Reason.VOLUME_IN_USE: _Text(
        _("volume '%(volume)s' is open in %(clients)s"),
        _('Detach it, or end these clients; then delete it again.'),
    ),
    Reason.VOLUME_HAS_SNAPSHOTS: _Text(
        _(
            "volume '%(volume)s' has the snapshots %(snapshots)s; cloned of"
            ' them: %(children)s'
        ),
        _('Delete what was cloned of it and its snapshots first.'),
    ),
    Reason.SHRINK: _Text(
        _("volume '%(volume)s' has %(size)d bytes, more than %(new_size)d"),
        _('A volume is never shrunk: give at least its size.'),
    ),
    Reason.EXPORT_EXISTS: _Text(
        _("'%(path)s' exists already"),
        _('Choose another path, or remove that file first.'),
    ),
    Reason.EXPORT_FAILED: _Text(
        _("'%(path)s' cannot be written: %(problem)s"),
        _('Choose a path in a directory that you may write to, with room.'),
    ),
    Reason.BACKEND_UNKNOWN: _Text(
        _('%(problem)s'),
        _('%(remedy)s'),
    ),
    Reason.LAYOUT_UNKNOWN: _Text(
        _("directory '%(path)s' has layout %(found)s, we know %(known)s"),
        _(
            'Use the release of cinder_cow that made it, or give an empty'
            ' directory.'
        ),
    ),
    Reason.URL_UNSUPPORTED: _Text(
        _("'%(url)s' cannot be opened: no image is read by %(scheme)s"),
        _('Give a path, an http or https URL, or the id of a Glance image.'),
    ),
    Reason.GLANCE_UNAVAILABLE: _Text(
        _('Glance cannot be asked: %(problem)s'),
        _(
            'Set OS_CLOUD, or OS_AUTH_URL and its like, for a user of the'
            ' cloud; OS_AUTH_TYPE=none and OS_ENDPOINT for a Glance without'
            ' Keystone.'
        ),
    ),
    Reason.SCRATCH_UNUSABLE: _Text(
        _("directory '%(path)s' cannot hold scratch files: %(problem)s"),
        _('Set cow_scratch_dir to a directory that this user may write to.'),
    ),
    Reason.COW_DISABLED: _Text(
        _("copy-on-write is switched off in back end '%(backend)s'"),
        _('Set cow_enabled = true in section [%(backend)s].'),
    ),
    Reason.FALLBACK_REFUSED: _Text(
        _("full copies are forbidden in back end '%(backend)s'"),
        _('Set cow_fallback = stream in section [%(backend)s].'),
    ),
    Reason.NOT_CLONEABLE: _Text(
        _("the driver of back end '%(backend)s' cannot clone"),
        _('Use a back end whose driver clones, for instance "file".'),
    ),
    Reason.NO_BASE_KEEPING: _Text(
        _("the driver of back end '%(backend)s' keeps no bases"),
        _('Use a back end whose driver keeps bases, for instance "file".'),
    ),
    Reason.NO_CHECKING: _Text(
        _("the driver of back end '%(backend)s' does not find what is left"),
        _('Use a back end whose driver does, for instance "file".'),
    ),
    Reason.TOOL_MISSING: _Text(
        _("the program '%(tool)s' is not on the PATH"),
        _('Install it: apt-get install %(package)s.'),
    ),
    Reason.CEPH_UNAVAILABLE: _Text(
        _(
            "the Ceph cluster of back end '%(backend)s' is out of reach:"
            ' %(problem)s'
        ),
        _('%(remedy)s'),
    ),
    Reason.NO_POOL: _Text(
        _("the pool '%(pool)s' of back end '%(backend)s' does not exist"),
        _(
            'Set rbd_pool to one that is there, or make it: ceph osd pool'
            ' create %(pool)s; rbd pool init %(pool)s.'
        ),
    ),
    Reason.IMAGE_NOT_FOUND: _Text(
        _("image '%(image)s' cannot be read: %(problem)s"),
        _('Give the path, URL or Glance id of an image this user may read.'),
    ),
    Reason.IMAGE_NOT_ACTIVE: _Text(
        _("image '%(image)s' has the status '%(status)s'"),
        _('Wait until it is active, or upload its data.'),
    ),
    Reason.IMAGE_RECORD_INVALID: _Text(
        _("the record of image '%(image)s' has a bad %(field)s: %(value)s"),
        _('Correct the record, or upload the image again.'),
    ),
    Reason.IMAGE_CHANGED: _Text(
        _("image '%(image)s' changed while it was read"),
        _('Try again when nothing writes to it.'),
    ),
    Reason.SOURCE_DENIED: _Text(
        _("image '%(image)s' may not be read: %(problem)s"),
        _('%(remedy)s'),
    ),
    Reason.SOURCE_FAILED: _Text(
        _("image '%(image)s' could not be fetched: %(problem)s"),
        _('Try again; if it stays so, fetch it with curl to see more.'),
    ),
    Reason.SIZE_UNKNOWN: _Text(
        _("the server does not tell the size of image '%(image)s'"),
        _('Download it, and give the file.'),
    ),
    Reason.NOT_AN_IMAGE: _Text(
        _("'%(image)s' is not a disk image: %(problem)s"),
        _('%(remedy)s'),
    ),
    Reason.EMPTY_IMAGE: _Text(
        _("image '%(image)s' has no bytes"),
        _('Upload or write the image again.'),
    ),
    Reason.FORMAT_MISMATCH: _Text(
        _(
            "image '%(image)s' claims to be %(claimed)s, its content is"
            ' %(content)s'
        ),
        _('Claim the true format: --disk-format %(right)s.'),
    ),
    Reason.FORMAT_UNSUPPORTED: _Text(
        _("image '%(image)s' is %(format)s, which is not taken"),
        _('Convert it: qemu-img convert -O qcow2 OLD NEW.'),
    ),
    Reason.BACKING_FILE: _Text(
        _("image '%(image)s' has a backing file, which would be read too"),
        _('Merge the two: qemu-img convert -O qcow2 OLD NEW.'),
    ),
    Reason.DATA_FILE: _Text(
        _("image '%(image)s' keeps its data in another file"),
        _('Merge the two: qemu-img convert -O qcow2 OLD NEW.'),
    ),
    Reason.UNKNOWN_FEATURES: _Text(
        _("image '%(image)s' uses qcow2 features that are not known"),
        _('Make it again without them: qemu-img convert -O qcow2 SOURCE NEW.'),
    ),
    Reason.ENCRYPTED: _Text(
        _("image '%(image)s' is encrypted inside its qcow2"),
        _(
            'Decrypt it with its secret (qemu-img convert --object'
            ' secret,... --image-opts ... -O qcow2 NEW), or use LUKS.'
        ),
    ),
    Reason.OWN_KEY: _Text(
        _("image '%(image)s' is encrypted: %(problem)s"),
        _('Create the volume with an encrypted volume type.'),
    ),
    Reason.SIGNATURE_INVALID: _Text(
        _("the signature of image '%(image)s' does not hold: %(problem)s"),
        _('Upload the image again with its signature and certificate.'),
    ),
    Reason.IMAGE_CORRUPT: _Text(
        _("image '%(image)s' is damaged or cut short: %(problem)s"),
        _(
            'Upload the image again from an intact copy; a qcow2 may be'
            ' repaired with qemu-img check -r all.'
        ),
    ),
    Reason.IMAGE_TOO_LARGE: _Text(
        _(
            "image '%(image)s' has a virtual size of %(size)d bytes, more"
            ' than the limit of %(limit)d'
        ),
        _('Raise cow_max_image_gib to %(size_gib)d if this image is right.'),
    ),
    Reason.EXPANDS_TOO_FAR: _Text(
        _(
            "image '%(image)s' has %(size)d bytes and would become %(data)d,"
            ' more than %(limit)d times as much'
        ),
        _('Raise cow_max_expansion to %(ratio)d if this image is right.'),
    ),
    Reason.HASH_MISMATCH: _Text(
        _(
            "the bytes of image '%(image)s' have the %(algorithm)s"
            ' %(found)s, its record says %(expected)s'
        ),
        _('Upload the image again: its data are not what was uploaded.'),
    ),
    Reason.HASH_UNKNOWN: _Text(
        _("image '%(image)s' has a hash by '%(algorithm)s', not known here"),
        _('Have the image hashed with sha512 (Glance: hashing_algorithm).'),
    ),
    Reason.HASH_REQUIRED: _Text(
        _(
            "image '%(image)s' has no hash, and back end '%(backend)s'"
            ' requires one'
        ),
        _(
            'Give it with --hash or upload the image again; or set'
            ' cow_require_hash = false in section [%(backend)s].'
        ),
    ),
    Reason.HAS_RECORD: _Text(
        _("image '%(image)s' has a record, which tells its format and hash"),
        _('Leave out --disk-format and --hash.'),
    ),
    Reason.LOCATIONS_HIDDEN: _Text(
        _("Glance does not tell where image '%(image)s' is: %(problem)s"),
        _('%(remedy)s'),
    ),
    Reason.LOCATION_INVALID: _Text(
        _("'%(location)s' is not a location: %(problem)s"),
        _('Correct it, in the image record or on the command line.'),
    ),
    Reason.NOT_IN_BACKEND: _Text(
        _("%(location)s is outside of back end '%(backend)s'"),
        _('Use a back end that holds it, or let a base be made here.'),
    ),
    Reason.NO_SNAPSHOT: _Text(
        _('%(location)s names no snapshot in a cluster'),
        _(
            'Let Glance write the location whole'
            ' (rbd://FSID/POOL/IMAGE/SNAPSHOT): upload the image again.'
        ),
    ),
    Reason.OTHER_CLUSTER: _Text(
        _(
            "%(location)s is in another cluster than back end '%(backend)s',"
            ' which is in %(fsid)s'
        ),
        _('Copy the image to a Glance store in cluster %(fsid)s too.'),
    ),
    Reason.NOT_RAW: _Text(
        _("image '%(image)s' is %(format)s; Ceph clones raw images only"),
        _('Upload it as raw: qemu-img convert -O raw OLD NEW.'),
    ),
    Reason.LOCATION_UNTRUSTED: _Text(
        _('%(location)s is not trusted: %(problem)s'),
        _('%(remedy)s'),
    ),
    Reason.POOL_DENIED: _Text(
        _('client.%(user)s may not use %(location)s'),
        _(
            'Let it, with what else it needs added, for this replaces its'
            ' caps: ceph auth caps client.%(user)s %(caps)s.'
        ),
    ),
    Reason.POOL_NOT_FOUND: _Text(
        _('the pool of %(location)s does not exist'),
        _('Correct the location in the image record.'),
    ),
    Reason.LOCATION_NOT_FOUND: _Text(
        _('the image at %(location)s does not exist any more'),
        _('Upload the image again.'),
    ),
    Reason.SNAPSHOT_NOT_FOUND: _Text(
        _('the snapshot of %(location)s does not exist'),
        _(
            'Make it: rbd snap create %(snapshot)s; rbd snap protect'
            ' %(snapshot)s; or upload the image again.'
        ),
    ),
    Reason.SNAPSHOT_UNPROTECTED: _Text(
        _('the snapshot of %(location)s is not protected'),
        _(
            'Protect it: rbd snap protect %(snapshot)s; or let Ceph make'
            ' clones of version 2: ceph osd set-require-min-compat-client'
            ' mimic.'
        ),
    ),
    Reason.NO_BASE: _Text(
        _("back end '%(backend)s' has no base of image '%(image)s' yet"),
        _('Create a volume from the image: the first one makes the base.'),
    ),
    Reason.NO_IDENTITY: _Text(
        _("nothing tells the content of image '%(image)s' from another's"),
        _('Upload it again to a Glance that hashes (hashing_algorithm).'),
    ),
    Reason.BASE_NOT_FOUND: _Text(
        _("there is no base '%(base)s' in back end '%(backend)s'"),
        _('See "cinder-cow base list" for the names.'),
    ),
    Reason.BASE_CHANGED: _Text(
        _("base '%(base)s' was changed behind our back: %(problem)s"),
        _(
            'Export and delete the volumes that hang on it, if any; then'
            ' "cinder-cow base remove %(base)s", and it is made anew.'
        ),
    ),
    Reason.MANIFEST_DAMAGED: _Text(
        _("the manifest of base '%(base)s' cannot be used: %(problem)s"),
        _(
            'If the base is right, make it anew: cinder-cow base scrub'
            ' --record %(base)s.'
        ),
    ),
    Reason.BASE_IN_USE: _Text(
        _("base '%(base)s' is the parent of %(children)s"),
        _('Delete these volumes first.'),
    ),
    Reason.BASE_LOST: _Text(
        _("base '%(base)s' was taken over by another maker"),
        _('Try again: it may be there by now.'),
    ),
    Reason.NOT_LINKABLE: _Text(
        _("volume '%(volume)s' cannot become a base uncopied: %(problem)s"),
        _('Nothing need be done: the image is copied into a base instead.'),
    ),
    Reason.NO_SPACE: _Text(
        _("no space left in back end '%(backend)s': %(problem)s"),
        _('Free some space there and try again.'),
    ),
    Reason.NO_SCRATCH_SPACE: _Text(
        _(
            "directory '%(path)s' has %(free)d bytes free, image"
            " '%(image)s' needs %(needed)d"
        ),
        _('Free some, or set cow_scratch_dir to a larger file system.'),
    ),
    Reason.BUSY: _Text(
        _('%(what)s is held by %(owner)s; waited %(seconds)d s'),
        _('Try again when it has ended, or end it.'),
    ),
    Reason.CEPH_TIMED_OUT: _Text(
        _(
            "the cluster of back end '%(backend)s' did not answer within"
            ' %(seconds)d s: %(problem)s'
        ),
        _('Look at "ceph -s": monitors, OSDs and placement groups.'),
    ),
    Reason.CONVERSION_FAILED: _Text(
        _("image '%(image)s' could not be converted: %(problem)s"),
        _('Check it with qemu-img check, and convert it by hand to see more.'),
    ),
    Reason.MKFS_FAILED: _Text(
        _("no %(kind)s of %(size)d bytes could be made: %(problem)s"),
        _('Choose a size that %(tool)s takes, or run it by hand to see more.'),
    ),
    Reason.BACKEND_ERROR: _Text(
        _("back end '%(backend)s' failed: %(problem)s"),
        _('Look at the storage; the system log may say more.'),
    ),
    Reason.UNEXPECTED: _Text(
        _('cinder_cow has a fault: %(problem)s'),
        _('Report it, with the traceback in the log of the service.'),
    ),
}


def printable(text: str, limit: int = 200) -> str:
    """Make hostile text safe to print: no control characters, not long."""
    return ''.join(c if c.isprintable() else '?' for c in text[:limit])


class _Shown:
    """Facts as they may be printed: they come from records and files."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self._facts = facts

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - any fact
        fact = self._facts[name]
        return printable(fact, 500) if isinstance(fact, str) else fact


@dataclasses.dataclass(frozen=True, slots=True)
class Refusal:
    """One reason with its facts.

    :param reason: the code
    :param facts: what the sentence and the remedy of the reason need
    """

    reason: Reason
    facts: Mapping[str, Any]

    @property
    def detail(self) -> str:
        """What is the case, as a sentence without a full stop."""
        return _TEXTS[self.reason].detail % _Shown(self.facts)

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        return _TEXTS[self.reason].remedy % _Shown(self.facts)

    def __str__(self) -> str:
        return f'{self.detail} ({self.reason.value}). {self.remedy}'


def refuse(reason: Reason, **facts: Any) -> Refusal:  # noqa: ANN401
    """Make a refusal; a missing fact is found here, not when it is read."""
    refusal = Refusal(reason, facts)
    str(refusal)
    return refusal


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The answer of ``cloneable``: true, or false with its refusal.

    :param content_size: bytes of the disk there, of a driver that compares
        the bytes with the claim itself; then nobody else needs to
    """

    refusal: Refusal | None = None
    content_size: int | None = None

    def __bool__(self) -> bool:
        return self.refusal is None


YES = Verdict()


def no(reason: Reason, **facts: Any) -> Verdict:  # noqa: ANN401
    """Answer no, and why."""
    return Verdict(refuse(reason, **facts))
