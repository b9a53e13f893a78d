# SPDX-License-Identifier: Apache-2.0
"""Our options, and how a back end's section of cinder.conf is read.

A back end's option stands in the section named after the back end, or for
all of them in [backend_defaults], as with Cinder's own.
"""

from collections.abc import Sequence
import copy
import dataclasses
from typing import Any, Self

from oslo_config import cfg
from oslo_utils import units
from stevedore import extension

DEFAULTS_GROUP = 'backend_defaults'
DRIVERS = 'cinder_cow.drivers'
_DAY = 24 * 3600

OPTS: list[cfg.Opt] = [
    cfg.StrOpt(
        'cow_driver',
        help='Name of the driver that makes the volumes, as registered in '
        'the entry point group cinder_cow.drivers. When unset: "rbd" where '
        'volume_driver is an RBD driver, else "file".',
    ),
    cfg.BoolOpt(
        'cow_enabled',
        default=True,
        help='Make volumes from images copy-on-write. When false, every '
        'volume is a full copy. Related options: cow_fallback.',
    ),
    cfg.StrOpt(
        'cow_fallback',
        default='stream',
        choices=[
            ('stream', 'Copy the image into the volume, and say why.'),
            ('refuse', 'Fail with the reasons as the message.'),
        ],
        help='What to do when no copy-on-write volume can be made. It is '
        'about the full copy into a volume only: a base is made either way.',
    ),
    cfg.IntOpt(
        'cow_max_image_gib',
        default=16384,
        min=1,
        help='Largest virtual size of an image, in GiB. A header may claim '
        'any size; this bounds what it can make us do.',
    ),
    cfg.BoolOpt(
        'cow_require_hash',
        default=False,
        help='Refuse images whose record has neither a hash nor a checksum, '
        'so that no byte is taken unproved.',
    ),
    cfg.BoolOpt(
        'cow_verify_linked',
        default=False,
        help='Read an image for its hash also where its bytes are in the back '
        'end already, at a location that is trusted. When false, its base '
        'says that nothing but its location vouches for it.',
    ),
    cfg.StrOpt(
        'cow_glance_project_id',
        help='Id of the project whose volumes are those in which Glance keeps '
        'images, where it has a cinder store. When unset, no volume is '
        'believed to hold an image.',
    ),
    cfg.ListOpt(
        'cow_image_handlers',
        default=['volume_linking', 'downloading'],
        help='How a base may be made of an image, in the order to try: names '
        'in the entry point group cinder_cow.image_handlers.',
    ),
    cfg.IntOpt(
        'cow_base_wait_seconds',
        default=3600,
        min=1,
        help='How long a request waits for a base that another one makes, in '
        'seconds.',
    ),
    cfg.IntOpt(
        'cow_max_bases',
        default=0,
        min=0,
        help='How many bases are kept; of more, those that were not used for '
        'longest are removed, if no volume hangs on them and they are not '
        'pinned. 0 for no limit.',
    ),
    cfg.IntOpt(
        'cow_max_bases_gib',
        default=0,
        min=0,
        help='How much storage all bases may take, in GiB; see '
        'cow_max_bases. 0 for no limit.',
    ),
    cfg.IntOpt(
        'cow_max_base_idle_days',
        default=0,
        min=0,
        help='After how many days without a clone a base is removed, as '
        'with cow_max_bases. 0 for never.',
    ),
    cfg.IntOpt(
        'cow_max_expansion',
        default=100,
        min=1,
        help='How many times its own bytes an image may expand to when it '
        'is converted. A small file can hold a large disk of one block, '
        'repeated; up to 1 GiB it always may.',
    ),
    cfg.StrOpt(
        'cow_scratch_dir',
        help='Directory in which a directory for scratch files is made: '
        'for images fetched to be converted, and for conversions that cannot '
        'go straight into the back end. The system directory for temporary '
        'files when unset.',
    ),
    cfg.IntOpt(
        'cow_scratch_keep_hours',
        default=24,
        min=0,
        help='How long the fetched part of an image is kept after a fetch '
        'broke off, for the next one to go on, in hours.',
    ),
    cfg.IntOpt(
        'cow_fetch_timeout',
        default=60,
        min=1,
        help='How long a server may be silent, and take for 1 MiB, before '
        'the connection counts as broken, in seconds.',
    ),
    cfg.IntOpt(
        'cow_fetch_attempts',
        default=5,
        min=1,
        help='How often a connection is opened for no progress of 1 MiB '
        'before a fetch is given up.',
    ),
    cfg.IntOpt(
        'cow_max_fetches',
        default=4,
        min=1,
        help='How many images are fetched at once by all processes that '
        'share the scratch directory.',
    ),
    cfg.IntOpt(
        'cow_fetch_wait_seconds',
        default=3600,
        min=1,
        help='How long a fetch waits for others to end, in seconds.',
    ),
    cfg.IntOpt(
        'cow_qemu_img_memory_mib',
        default=2048,
        min=256,
        help='Address space of one qemu-img process, in MiB.',
    ),
    cfg.IntOpt(
        'cow_qemu_img_cpu_seconds',
        default=3600,
        min=1,
        help='Processor time of one qemu-img process, in seconds.',
    ),
    cfg.IntOpt(
        'cow_qemu_img_timeout',
        default=14400,
        min=1,
        help='Time after which a qemu-img process is ended, in seconds.',
    ),
]

# Of a cinder-scheduler, in [DEFAULT].
SCHEDULER_OPTS: list[cfg.Opt] = [
    cfg.FloatOpt(
        'cow_image_locality_weight_multiplier',
        default=2.0,
        help='How much ImageLocalityWeigher counts beside other weighers. '
        'With 1, as much as all the free space there is; a negative number '
        'prefers back ends that do not have the image.',
    ),
    cfg.BoolOpt(
        'cow_image_locality_ask_glance',
        default=True,
        help='Let ImageLocalityWeigher ask Glance where an image is. When '
        'false, it knows the bases of back ends only.',
    ),
    cfg.FloatOpt(
        'cow_image_locality_glance_timeout',
        default=2.0,
        min=0,
        help='How long ImageLocalityWeigher waits for Glance, in seconds. An '
        'answer that comes later counts for the next volume of the image.',
    ),
]

# Of a cinder-volume with CowVolumeManager, in [DEFAULT].
MANAGER_OPTS: list[cfg.Opt] = [
    cfg.IntOpt(
        'cow_tidy_interval',
        default=3600,
        min=-1,
        help='How often CowVolumeManager removes the bases that are beyond '
        'the limits, and those whose image is gone, in seconds; 0 for once a '
        'minute, -1 for never. Related options: cow_max_bases.',
    ),
    cfg.IntOpt(
        'cow_prepare_interval',
        default=600,
        min=-1,
        help='How often CowVolumeManager looks for public images with the '
        'property cow_prepare and makes their bases, in seconds; 0 for once '
        'a minute, -1 for never.',
    ),
    cfg.IntOpt(
        'cow_prepare_max_images',
        default=1000,
        min=1,
        help='At how many public images of Glance CowVolumeManager looks for '
        'the property cow_prepare, those made last first.',
    ),
]


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the options of a back end say, read once.

    Sizes are bytes, times are seconds. The defaults are those of ``OPTS``.
    """

    backend: str = ''
    cow_enabled: bool = True
    cow_fallback: str = 'stream'
    max_image_size: int = 16384 * units.Gi
    require_hash: bool = False
    verify_linked: bool = False
    glance_project: str | None = None
    image_handlers: tuple[str, ...] = ('volume_linking', 'downloading')
    base_wait: float = 3600
    max_bases: int = 0
    max_bases_size: int = 0
    max_base_idle: float = 0
    max_expansion: int = 100
    scratch_dir: str | None = None
    scratch_keep: float = 24 * 3600
    fetch_timeout: float = 60
    fetch_attempts: int = 5
    max_fetches: int = 4
    fetch_wait: float = 3600
    qemu_img_memory: int = 2048 * units.Mi
    qemu_img_cpu_seconds: int = 3600
    qemu_img_timeout: int = 14400

    @classmethod
    def read(cls, options: 'BackendOptions') -> Self:
        return cls(
            backend=options.backend,
            cow_enabled=options.get('cow_enabled'),
            cow_fallback=options.get('cow_fallback'),
            max_image_size=options.get('cow_max_image_gib') * units.Gi,
            require_hash=options.get('cow_require_hash'),
            verify_linked=options.get('cow_verify_linked'),
            glance_project=options.get('cow_glance_project_id'),
            image_handlers=tuple(options.get('cow_image_handlers')),
            base_wait=options.get('cow_base_wait_seconds'),
            max_bases=options.get('cow_max_bases'),
            max_bases_size=options.get('cow_max_bases_gib') * units.Gi,
            max_base_idle=options.get('cow_max_base_idle_days') * _DAY,
            max_expansion=options.get('cow_max_expansion'),
            scratch_dir=options.get('cow_scratch_dir'),
            scratch_keep=options.get('cow_scratch_keep_hours') * 3600,
            fetch_timeout=options.get('cow_fetch_timeout'),
            fetch_attempts=options.get('cow_fetch_attempts'),
            max_fetches=options.get('cow_max_fetches'),
            fetch_wait=options.get('cow_fetch_wait_seconds'),
            qemu_img_memory=options.get('cow_qemu_img_memory_mib') * units.Mi,
            qemu_img_cpu_seconds=options.get('cow_qemu_img_cpu_seconds'),
            qemu_img_timeout=options.get('cow_qemu_img_timeout'),
        )


class BackendOptions:
    """The options of one back end: its section, then [backend_defaults]."""

    def __init__(self, conf: cfg.ConfigOpts, backend: str) -> None:
        self.backend = backend
        self._conf = conf
        self._overrides: dict[str, object] = {}
        self.register(OPTS)

    def register(self, opts: Sequence[cfg.Opt]) -> None:
        """Make options readable; registering them twice does no harm."""
        self._conf.register_opts(opts, group=DEFAULTS_GROUP)
        # In the back end's section None means "not given here".
        for opt in opts:
            unset = copy.copy(opt)
            unset.default = None
            self._conf.register_opt(unset, group=self.backend)

    def override(self, name: str, value: object) -> None:
        """Give an option a value whatever the configuration says."""
        self._overrides[name] = value

    def get(self, name: str) -> Any:  # noqa: ANN401 - as typed by the option
        if name in self._overrides:
            return self._overrides[name]
        value = self._conf[self.backend][name]
        return self._conf[DEFAULTS_GROUP][name] if value is None else value


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """List all options, the drivers' too, for oslo-config-generator."""
    drivers = extension.ExtensionManager[Any](DRIVERS)
    found = [opt for driver in drivers for opt in driver.plugin.OPTS]
    return [
        ('DEFAULT', [*SCHEDULER_OPTS, *MANAGER_OPTS]),
        (DEFAULTS_GROUP, [*OPTS, *found]),
    ]
