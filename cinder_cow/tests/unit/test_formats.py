# SPDX-License-Identifier: Apache-2.0
"""Claims and contents: what is taken, what is refused, and why.

Heads are built by hand here, so that nothing depends on qemu-img.
"""

import random
import struct
import uuid

import ddt
import hypothesis
from hypothesis import strategies as st
from oslo_utils import units
from oslotest import base as test_base

from cinder_cow import exception
from cinder_cow import formats
from cinder_cow import image_info as images
from cinder_cow.refusal import Reason

SIZE = 256 * units.Ki
ISO_AT = 32 * units.Ki
RAW_LIKE = ('raw', 'iso', 'luks', 'gpt')
TAKEN = (*RAW_LIKE, 'qcow2', 'vmdk', 'vhd', 'vhdx', 'vdi')
NOT_TAKEN = ('qcow', 'qed', 'ploop', 'RAW', 'raw ', '', 'nonsense')
MISMATCH = Reason.FORMAT_MISMATCH
UNSUPPORTED = Reason.FORMAT_UNSUPPORTED
CORRUPT = Reason.IMAGE_CORRUPT
PARENT = Reason.BACKING_FILE
ELSEWHERE = Reason.DATA_FILE

_noise = bytearray(random.Random(1).randbytes(SIZE))
# No magic by chance.
_noise[510:512] = b'\1\2'
NOISE = bytes(_noise)


def put(head, offset, data):
    """Return a head with data at an offset, zeros between."""
    head = head.ljust(offset, b'\0')
    return head[:offset] + data + head[offset + len(data) :]


def qcow2(version=3, backing=0, features=0, size=units.Gi, length=SIZE):
    header = struct.pack(
        '>4sIQIIQIIQQIIQ',
        b'QFI\xfb',
        version,
        backing,
        16 if backing else 0,
        16,  # bits of a cluster
        size,
        0,  # not encrypted
        1,
        196608,
        65536,
        1,
        0,
        0,
    )
    if version == 3:
        header += struct.pack('>QQQII', features, 0, 0, 4, 104)
    return put(header, 512, b'/etc/passwd\0').ljust(length, b'\0')[:length]


def boot_sector(head):
    """Add the signature of a boot sector: an MBR, or the one of a GPT."""
    return put(head, 510, b'\x55\xaa')


def iso(head, standard=b'CD001'):
    """Add an ISO 9660 descriptor behind the system area."""
    descriptor = b'\1' + standard + b'\1\0'
    return put(head, ISO_AT, descriptor.ljust(2048, b'\0')).ljust(SIZE, b'\0')


def gpt():
    partition = struct.pack(
        '<B3BB3BII', 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, 4096
    )
    return boot_sector(put(put(b'', 446, partition), 512, b'EFI PART'))


def mbr():
    partition = struct.pack('<B3BB3BII', 0x80, 1, 1, 0, 0x83, 0, 0, 0, 1, 99)
    return boot_sector(put(NOISE, 446, partition + bytes(48)))


def fat():
    """Build a FAT file system: no partition table, its boot sector alike."""
    sector = put(put(b'\xeb\x3c\x90mkfs.fat', 0x10, b'\2'), 0x15, b'\xf8')
    return boot_sector(sector).ljust(SIZE, b'\0')


def luks(version=1):
    header = struct.pack(
        '>6sH32s32s32sII20s32sI40s',
        b'LUKS\xba\xbe',
        version,
        b'aes',
        b'xts-plain64',
        b'sha256',
        4096,
        64,
        b'd' * 20,
        b's' * 32,
        1000,
        b'0b5bf0b5-5c1d-4f6e-9d6b-0f5a4c3b2a19',
    )
    return header.ljust(4096, b'\0') + NOISE


SPARSE = b'parentCID=ffffffff\ncreateType="monolithicSparse"\n'


def vmdk(descriptor=SPARSE, desc_sector=1, capacity=4096, directory=26):
    header = struct.pack(
        '<4sIIQQQQIQQQ',
        b'KDMV',
        1,
        3,
        capacity,
        128,
        desc_sector,
        20,
        512,
        21,
        directory,
        128,
    )
    return put(header, 512, b'# Disk DescriptorFile\n' + descriptor).ljust(
        SIZE, b'\0'
    )


def vmdk_text():
    """Build a descriptor that names another file as its data."""
    return (
        b'# Disk DescriptorFile\nversion=1\nCID=fffffffe\n'
        b'createType="monolithicFlat"\nRW 8 FLAT "/etc/shadow" 0\n'
    )


AT_END = 2**64 - 1


def vmdk_tail(capacity=4096, descriptor=1, directory=26, kind=3):
    """Build the last bytes of a streamOptimized VMDK: markers, footer."""
    footer = vmdk(b'', descriptor, capacity, directory)[:512]
    return struct.pack('<QII496x', 1, 0, kind) + footer + bytes(512)


def vdi(kind=1, size=units.Gi, parent=0, length=SIZE):
    header = put(b'<<< Oracle VM VirtualBox', 64, b'\x7f\x10\xda\xbe')
    header = put(header, 76, struct.pack('<I', kind))
    header = put(header, 0x170, struct.pack('<Q', size))
    header = put(header, 0x1B8, struct.pack('<Q', parent))
    return header.ljust(SIZE, b'\0')[:length]


def vhd_footer(kind=2, size=units.Gi, wrong=0):
    footer = struct.pack(
        '>8sIIQI4sIIQQHBBI',
        b'conectix',
        2,
        0x10000,
        512,
        0,
        b'vpc ',
        0,
        0,
        7,  # the size it once had
        size,
        2,
        4,
        17,
        kind,
    )
    checksum = ~sum(footer) + wrong & 2**32 - 1
    return (footer + struct.pack('>I', checksum)).ljust(512, b'\0')


def vhd(kind=3, size=units.Gi):
    return vhd_footer(kind, size).ljust(SIZE, b'\0')


def guid(text):
    return uuid.UUID(text).bytes_le


def vhdx(size=units.Gi, flags=0, more='', at=320 * units.Ki):
    """Build a VHDX with its metadata at some place; the BAT is nowhere."""
    table = struct.pack('<4s4xI4x', b'regi', 2)
    table += struct.pack(
        '<16sQII', guid('2dc27766-f623-4200-9d64-115e9bfd4a08'), 1, 1, 1
    )
    table += struct.pack(
        '<16sQII',
        guid('8b7ca206-4790-4b9a-b8fe-575f050f886e'),
        at,
        128 * units.Ki,
        1,
    )
    names = [
        'caa16737-fa36-4d43-b3b6-33f0aa44e76b',
        '2fa54224-cd1b-4876-b211-5dbed83bf4b8',
        '8141bf1d-a96f-4709-ba47-f233a8faab5f',
    ]
    names += [more] if more else []
    items = struct.pack('<8s2xH20x', b'metadata', len(names))
    for number, name in enumerate(names):
        place = 64 * units.Ki + 64 * number
        items += struct.pack('<16sIII4x', guid(name), place, 8, 0)
    items = items.ljust(64 * units.Ki, b'\0')
    for value in (units.Mi | flags << 32, size, 512):
        items += struct.pack('<Q56x', value)
    head = put(b'vhdxfile', 192 * units.Ki, table)
    return put(head, at, items.ljust(128 * units.Ki, b'\0'))


VHDX_PARENT = 'a8d35f2d-b30b-454d-abf7-d3d84834ab0c'


def qed():
    return b'QED\0'.ljust(SIZE, b'\0')


def image(claimed, name='an image'):
    return images.ImageInfo(id='id', name=name, disk_format=claimed)


def answer(claimed, head, tail=b''):
    """Tell why a claim is refused; None if it is not."""
    inspection = formats.inspect(head, tail)
    refusal = formats.check_claim(image(claimed), inspection)
    return refusal.reason if refusal else None


@ddt.ddt
class TestCheckClaim(test_base.BaseTestCase):
    """Each row: the content, what is taken, why other claims are refused."""

    def check(self, head, answers, otherwise, tail=b''):
        expected = dict.fromkeys(TAKEN, otherwise) | answers
        expected |= dict.fromkeys(NOT_TAKEN, UNSUPPORTED)
        if answers.keys() & set(RAW_LIKE):
            # May be a fixed VHD whose end is cut.
            expected['vhd'] = CORRUPT
        found = {claimed: answer(claimed, head, tail) for claimed in expected}
        self.assertEqual(expected, found)

    @ddt.named_data(
        ['noise', NOISE, {'raw': None}],
        ['zeros', bytes(SIZE), {'raw': None}],
        ['text', b'#!/bin/sh\n' * 9999, {'raw': None}],
        ['gzip', b'\x1f\x8b' + NOISE, {'raw': None}],
        ['fat', fat(), {'raw': None}],
        ['mbr', mbr(), {'raw': None, 'gpt': None}],
        ['gpt', gpt(), {'raw': None, 'gpt': None}],
        ['gpt_of_one_sector', gpt()[:512], {'raw': None, 'gpt': None}],
        ['signature_alone', boot_sector(b''), {'raw': None, 'gpt': None}],
        ['iso', iso(b''), {'raw': None, 'iso': None}],
        ['udf', iso(b'', b'NSR02'), {'raw': None, 'iso': None}],
        ['iso_and_gpt', iso(gpt()), {'raw': None, 'iso': None}],
        ['iso_and_mbr', iso(mbr()), {'raw': None, 'iso': None}],
        ['iso_cut', iso(b'')[: ISO_AT + 2047], {'raw': None}],
        ['iso_elsewhere', b'\0' + iso(b''), {'raw': None}],
        ['luks', luks(), {'luks': None}],
        ['luks_of_one_header', luks()[:592], {'luks': None}],
        ['qcow2_v2', qcow2(2), {'qcow2': None}],
        ['qcow2_v3', qcow2(3), {'qcow2': None}],
        ['qcow2_of_one_sector', qcow2(length=512), {'qcow2': None}],
        ['qcow2_elsewhere', b'\0' + qcow2(), {'raw': None}],
        ['qcow2_v4', qcow2(4), {'qcow2': Reason.UNKNOWN_FEATURES}],
        [
            'backing_file_v2',
            qcow2(2, backing=512),
            {'qcow2': Reason.BACKING_FILE},
        ],
        [
            'backing_file_v3',
            qcow2(3, backing=512),
            {'qcow2': Reason.BACKING_FILE},
        ],
        [
            'backing_file_far_away',
            qcow2(3, backing=1 << 56),
            {'qcow2': Reason.BACKING_FILE},
        ],
        ['data_file', qcow2(features=4), {'qcow2': Reason.DATA_FILE}],
        ['no_disk', qcow2(size=0), {'qcow2': Reason.EMPTY_IMAGE}],
        [
            'backing_file_of_no_disk',
            qcow2(size=0, backing=512),
            {'qcow2': Reason.BACKING_FILE},
        ],
        ['vmdk', vmdk(), {'vmdk': None}],
        ['vmdk_stream', vmdk(b'createType="streamOptimized"'), {'vmdk': None}],
        ['vmdk_no_descriptor', vmdk(b''), {'vmdk': CORRUPT}],
        ['vmdk_wrong_place', vmdk(desc_sector=9), {'vmdk': CORRUPT}],
        ['vmdk_no_disk', vmdk(capacity=0), {'vmdk': ELSEWHERE}],
        ['vmdk_cut', vmdk()[:511], {'vmdk': CORRUPT}],
        ['vmdk_text', vmdk_text(), {'vmdk': ELSEWHERE}],
        [
            'vmdk_text_padded',
            vmdk_text().ljust(4096, b'\n'),
            {'vmdk': ELSEWHERE},
        ],
        ['vdi', vdi(), {'vdi': None}],
        ['vdi_static', vdi(2), {'vdi': None}],
        ['vdi_undo', vdi(3), {'vdi': PARENT}],
        ['vdi_difference', vdi(4), {'vdi': PARENT}],
        ['vdi_parent', vdi(parent=1), {'vdi': PARENT}],
        ['vdi_cut', vdi(length=511), {'vdi': CORRUPT}],
        ['vhd', vhd(), {'vhd': None}],
        ['vhd_differencing', vhd(4), {'vhd': PARENT}],
        ['vhd_fixed_in_front', vhd(2), {'vhd': CORRUPT}],
        ['vhd_cut', vhd()[:511], {'vhd': CORRUPT}],
        ['vhd_wrong_sum', put(vhd(), 511, b'\1'), {'vhd': CORRUPT}],
        ['vhdx', vhdx(), {'vhdx': None}],
        ['vhdx_parent_bit', vhdx(flags=2), {'vhdx': PARENT}],
        ['vhdx_parent', vhdx(more=VHDX_PARENT), {'vhdx': PARENT}],
        ['vhdx_cut', vhdx()[: 250 * units.Ki], {'vhdx': CORRUPT}],
        ['vhdx_no_metadata', vhdx()[:SIZE], {'vhdx': CORRUPT}],
    )
    def test_content_that_is_taken(self, head, answers):
        self.check(head, answers, MISMATCH)

    @ddt.named_data(
        ['qcow2_v1', qcow2(1)],
        ['cowd', b'COWD'.ljust(SIZE, b'\0')],
        ['parallels', b'WithoutFreeSpace'.ljust(SIZE, b'\0')],
        ['ploop', b'WithouFreSpacExt'.ljust(SIZE, b'\0')],
        ['bochs', b'Bochs Virtual HD Image'.ljust(SIZE, b'\0')],
        ['cloop', b'#!/bin/sh\n#V2.0 Format\nmodprobe cloop'],
        ['qed', qed()],
        # Two in one: whoever reads it may take it for the other.
        ['qcow2_and_gpt', boot_sector(qcow2())],
        ['qcow2_v2_and_gpt', boot_sector(qcow2(2))],
        ['unsafe_qcow2_and_gpt', boot_sector(qcow2(backing=512))],
        ['qcow2_and_iso', iso(qcow2())],
        ['qcow2_and_iso_and_gpt', iso(boot_sector(qcow2()))],
        ['qcow2_and_vdi', put(qcow2(), 64, b'\x7f\x10\xda\xbe')],
        ['luks_and_gpt', boot_sector(luks())],
        ['luks_and_iso', iso(luks())],
        ['vmdk_and_gpt', boot_sector(vmdk())],
        ['vmdk_and_iso', iso(vmdk())],
        ['vhd_and_gpt', boot_sector(vhd())],
        ['vhd_and_iso', iso(vhd())],
        ['vhdx_and_iso', iso(vhdx())],
        ['vdi_and_gpt', boot_sector(vdi())],
        ['qed_and_gpt', boot_sector(qed())],
    )
    def test_content_that_is_never_taken(self, head):
        self.check(head, {}, UNSUPPORTED)

    @ddt.named_data(
        ['noise', NOISE], ['mbr', mbr()], ['iso', iso(gpt())], ['luks', luks()]
    )
    def test_a_footer_makes_a_vhd(self, head):
        tail = bytes(1024) + vhd_footer()
        self.check(head, {'vhd': None}, MISMATCH, tail)
        self.check(head, {'vhd': None}, MISMATCH, vhd_footer())
        for kind, reason in ((3, CORRUPT), (4, PARENT), (0, CORRUPT)):
            tail = vhd_footer(kind)
            self.check(head, {'vhd': reason}, MISMATCH, tail)

    def test_a_footer_alone_is_none(self):
        for tail in (vhd_footer(wrong=1), vhd_footer()[1:], b'conectix'):
            self.assertEqual(CORRUPT, answer('vhd', NOISE, tail))
            self.assertIsNone(answer('raw', NOISE, tail))
        # What has another magic in front is that.
        self.assertIsNone(answer('qcow2', qcow2(), vhd_footer()))
        self.assertIsNone(answer('vdi', vdi(), vhd_footer()))

    def test_a_dynamic_vhd_ends_as_it_begins(self):
        self.assertIsNone(answer('vhd', vhd(), bytes(9) + vhd_footer(3)))
        for tail in (
            bytes(512),
            vhd_footer(3, wrong=1),
            vhd_footer(3, 512),
            vhd_footer(2),
            b'\0',
        ):
            self.assertEqual(CORRUPT, answer('vhd', vhd(), tail))

    @ddt.data(
        b'parentFileNameHint="x"',
        b'# parentFileNameHint',
        b'PARENTFILENAMEHINT = "x"',
        b'parentCID=00000001',
        b' parentCID = fffffffe',
    )
    def test_a_vmdk_with_a_parent(self, line):
        self.assertEqual(PARENT, answer('vmdk', vmdk(SPARSE + line)))
        late = SPARSE + b'#' * 9000 + b'\n' + line
        self.assertEqual(PARENT, answer('vmdk', vmdk(late)))

    @ddt.data(
        b'createType="monolithicFlat"',
        b'RW 8 SPARSE "/a"',
        b'RW 8 SPARSE "..\\a"',
        b'RW 8 FLAT "a" 0',
        b'RDONLY 8 VMFS "a"',
        b'RW 8 SPARSE "a"\nRW 8 SPARSE "b"',
    )
    def test_a_vmdk_of_several_files(self, line):
        self.assertEqual(ELSEWHERE, answer('vmdk', vmdk(SPARSE + line)))

    def test_a_vmdk_of_one_file(self):
        for line in (b'RW 8 SPARSE "a"', b'RDONLY 8 SPARSE "a"', b'ddb.x = /'):
            self.assertIsNone(answer('vmdk', vmdk(SPARSE + line)))
        # What follows the descriptor is none of it.
        head = vmdk(SPARSE + b'\0parentFileNameHint')
        self.assertIsNone(answer('vmdk', head))

    def test_the_footer_of_a_vmdk(self):
        head = vmdk(directory=AT_END)
        for tail in (b'', vmdk_tail()):
            self.assertIsNone(answer('vmdk', head, tail))
        for tail in (
            vmdk_tail()[1:],
            vmdk_tail(kind=1),
            vmdk_tail(capacity=8192),
            vmdk_tail(capacity=0),
            vmdk_tail(descriptor=9),
            vmdk_tail(directory=AT_END),
            vmdk_tail()[:-512] + b'\1' * 512,
            bytes(1536),
            b'\0',
        ):
            self.assertEqual(CORRUPT, answer('vmdk', head, tail))

    @ddt.data(*range(64))
    def test_features_of_qcow2(self, bit):
        # Dirty, corrupt and the kind of compression: qemu-img deals with it.
        expected = {0: None, 1: None, 2: Reason.DATA_FILE, 3: None}
        self.assertEqual(
            expected.get(bit, Reason.UNKNOWN_FEATURES),
            answer('qcow2', qcow2(features=1 << bit)),
        )

    def test_version_2_has_no_features(self):
        head = put(qcow2(2), 72, struct.pack('>Q', 1 << 63))
        self.assertIsNone(answer('qcow2', head))

    def test_a_small_raw_image_is_raw(self):
        for length in range(1, 601):
            for head in (NOISE[:length], bytes(length), b'a' * length):
                self.assertIsNone(answer('raw', head), length)
                self.assertEqual(MISMATCH, answer('qcow2', head))

    @ddt.data(4, 72, 104, 511)
    def test_a_small_qcow2_is_not_raw(self, length):
        # On a volume, zeros follow, and the header is whole.
        for head in (qcow2(length=length), qcow2(2, 512, length=length)):
            for claimed in TAKEN:
                self.assertIsNotNone(answer(claimed, head), claimed)

    @ddt.named_data(
        ['vdi', vdi()], ['qed', qed()], ['vhd', vhd()], ['luks', luks()]
    )
    def test_a_small_other_is_not_raw(self, head):
        for length in (100, 511):
            self.assertIsNotNone(answer('raw', head[:length]), length)

    @ddt.named_data(
        ['zeros', vmdk_text() + bytes(4096)],
        ['zeros_and_noise', vmdk_text() + bytes(1) + NOISE],
        ['lines_and_zeros', vmdk_text().ljust(512, b'\n') + bytes(4096)],
        ['lines_and_noise', vmdk_text().ljust(512, b'\n') + b'\xff' * 512],
    )
    def test_a_vmdk_descriptor_is_not_raw_whatever_follows(self, head):
        # QEMU takes it for one, and opens the file that it names.
        self.assertIsNotNone(answer('raw', head))

    def test_the_claim_advised_is_right(self):
        for head in (NOISE, gpt(), iso(b''), luks(), qcow2(), vmdk(), vhdx()):
            inspection = formats.inspect(head)
            refused = [
                formats.check_claim(image(claimed), inspection)
                for claimed in TAKEN
            ]
            for refusal in filter(None, refused):
                if refusal.reason is CORRUPT:
                    continue
                right = refusal.facts['right']
                self.assertEqual(right, inspection.claim)
                self.assertIn(f'--disk-format {right}.', refusal.remedy)
                self.assertIsNone(answer(right, head))

    def test_the_content_is_told(self):
        refusal = formats.check_claim(image('raw'), formats.inspect(qcow2()))
        self.assertIn('claims to be raw, its content is qcow2', str(refusal))
        refusal = formats.check_claim(
            image('qcow2'), formats.inspect(iso(boot_sector(qcow2())))
        )
        self.assertIn('is gpt+iso+qcow2, which is not taken', str(refusal))

    @ddt.data('raw\x1b[2J', 'r\naw', '\u202eraw', '\ud800')
    def test_a_hostile_claim_is_told_safely(self, claimed):
        for head in (NOISE, qcow2(), vmdk()):
            told = str(
                formats.check_claim(
                    image(claimed, name='\x1b]0;x\x07'), formats.inspect(head)
                )
            )
            self.assertTrue(told.isprintable(), ascii(told))

    def test_a_long_claim_is_cut(self):
        told = formats.check_claim(
            image('x' * 100_000), formats.inspect(NOISE)
        )
        self.assertLess(len(str(told)), 5000)


MAGICS = st.sampled_from(
    [
        b'',
        NOISE[:600],
        qcow2(),
        qcow2(backing=512),
        gpt(),
        iso(b''),
        luks(),
        vmdk(),
        vmdk_text(),
        vdi(),
        vhd(),
        vhdx(),
        vhdx(more=VHDX_PARENT),
        vmdk(directory=AT_END),
        qed(),
        put(b'', 192 * units.Ki, b'regi').ljust(SIZE, b'\xff'),
        b'# Disk DescriptorFile\n' * 30,
    ]
)


@ddt.ddt
class TestInspect(test_base.BaseTestCase):
    def check(self, head, tail=b''):
        inspection = formats.inspect(head, tail)
        self.assertTrue(inspection.content)
        self.assertIn(inspection.claim, (None, *TAKEN))
        if inspection.claim not in formats.CONVERTED:
            self.assertIsNone(inspection.virtual_size)
            self.assertEqual((), inspection.unsafe)
        for claimed in (*TAKEN, *NOT_TAKEN):
            formats.check_claim(image(claimed), inspection)

    @hypothesis.settings(deadline=None)
    @hypothesis.given(st.binary(max_size=2000))
    @hypothesis.example(b'')
    def test_any_bytes(self, head):
        self.check(head)

    @hypothesis.settings(deadline=None)
    @hypothesis.given(
        MAGICS, st.integers(0, 2000) | st.just(SIZE), st.binary(max_size=200)
    )
    def test_the_beginning_of_a_format_and_anything(self, head, kept, behind):
        self.check(head[:kept] + behind)

    @hypothesis.settings(deadline=None)
    @hypothesis.given(
        MAGICS,
        st.lists(
            st.tuples(
                st.integers(0, 600)
                | st.integers(192 * units.Ki, 192 * units.Ki + 100)
                | st.integers(320 * units.Ki, 320 * units.Ki + 200)
                | st.sampled_from([ISO_AT, SIZE - 9]),
                st.binary(min_size=1, max_size=8)
                | st.sampled_from([b'\xff' * 8, bytes(8), bytes(7) + b'\x80']),
            ),
            max_size=5,
        ),
        st.sampled_from(
            [b'', b'\0', bytes(1536), vmdk_tail(), vhd_footer(), vhd_footer(3)]
        ),
        st.integers(0, 1536),
    )
    def test_a_damaged_format(self, head, patches, tail, at):
        for offset, data in patches:
            head = put(head, offset, data)
            if tail:
                tail = put(tail, at, data)[: len(tail)]
        self.check(head, tail)

    @ddt.named_data(
        ['latin', b'a' * 512 + b'\xff'],
        ['utf8', b'# a text\n' * 60 + 'ü'.encode()],
        ['script', b'#!/bin/sh\n' + b'# skip\n' * 80 + NOISE],
    )
    def test_text_that_goes_on_otherwise(self, head):
        self.check(head)
        self.assertIsNone(answer('raw', head))

    @ddt.data(0, 1, 512, units.Gi, 2**64 - 1)
    def test_virtual_size(self, size):
        for version in (2, 3):
            inspection = formats.inspect(qcow2(version, size=size))
            self.assertEqual(size, inspection.virtual_size)
            self.assertEqual('qcow2', inspection.claim)

    @ddt.data(512, units.Gi, 2**64 - 512)
    def test_virtual_size_of_others(self, size):
        for head, tail in (
            (vmdk(capacity=size // 512), b''),
            (
                vmdk(capacity=size // 512, directory=AT_END),
                vmdk_tail(size // 512),
            ),
            (vdi(size=size), b''),
            (vdi(size=size - 511), b''),
            (vhd(size=size), b''),
            (NOISE, vhd_footer(size=size)),
            (vhdx(size=size), b''),
        ):
            self.assertEqual(size, formats.inspect(head, tail).virtual_size)

    def test_other_formats_are_their_own_disk(self):
        for head in (b'', NOISE, gpt(), iso(b''), luks()):
            self.assertIsNone(formats.inspect(head).virtual_size)

    def test_a_whole_head_is_as_its_beginning(self):
        for head in (qcow2(), gpt(), iso(gpt()), luks(), vmdk(), vhdx()):
            padded = head.ljust(formats.HEAD, b'\0')
            self.assertEqual(
                formats.inspect(head).content, formats.inspect(padded).content
            )

    def test_is_told(self):
        self.assertEqual('raw', str(formats.inspect(b'')))
        self.assertEqual('gpt+iso', str(formats.inspect(iso(gpt()))))


@ddt.ddt
class TestCheckUnclaimed(test_base.BaseTestCase):
    def check(self, head, size):
        """Check a file; return the reason and the words of a refusal."""
        try:
            formats.check_unclaimed(
                'a file', size, head, formats.inspect(head)
            )
        except exception.ImageError as error:
            self.assertIn('a file', str(error))
            return error.reason, str(error)
        return None, ''

    @ddt.named_data(
        ['noise', NOISE, SIZE],
        ['noise_of_one_sector', NOISE, 512],
        ['gpt', gpt(), 1024],
        ['iso', iso(b''), SIZE],
        ['iso_odd', iso(gpt()), SIZE + 1],
        ['qcow2', qcow2(), SIZE],
        ['qcow2_odd', qcow2(), SIZE + 1],
        # Refused later, by any claim.
        ['vmdk', vmdk(), SIZE + 1],
    )
    def test_may_be_a_disk(self, head, size):
        self.assertEqual((None, ''), self.check(head, size))

    @ddt.named_data(
        ['one_byte', NOISE, 1, Reason.NOT_AN_IMAGE, '1 bytes'],
        ['odd', NOISE, 513, Reason.NOT_AN_IMAGE, '--disk-format raw'],
        ['half_a_sector', NOISE, 768, Reason.NOT_AN_IMAGE, '768 bytes'],
        ['odd_gpt', gpt(), 1025, Reason.NOT_AN_IMAGE, '1025 bytes'],
        ['luks', luks(), SIZE, MISMATCH, '--disk-format luks'],
        ['luks_odd', luks(), SIZE + 1, MISMATCH, '--disk-format luks'],
    )
    def test_is_likely_a_mistake(self, head, size, reason, words):
        found, message = self.check(head, size)
        self.assertIs(reason, found)
        self.assertIn(words, message)

    @ddt.named_data(
        ['gzip', b'\x1f\x8b\x08', 'gzip -d'],
        ['xz', b'\xfd7zXZ\0', 'xz -d'],
        ['bzip2', b'BZh9', 'bzip2 -d'],
        ['zstd', b'\x28\xb5\x2f\xfd', 'zstd -d'],
        ['zip', b'PK\3\4', 'unzip'],
    )
    def test_is_compressed(self, magic, command):
        for head in (magic + NOISE, boot_sector(magic + NOISE)):
            for size in (SIZE, SIZE + 1):
                reason, message = self.check(head, size)
                self.assertIs(Reason.NOT_AN_IMAGE, reason)
                self.assertIn(f': {command} FILE.', message)
        # Behind the beginning it is no magic.
        self.assertEqual((None, ''), self.check(b'\0' + magic + NOISE, SIZE))


class Source:
    """Shows its ends, or only its first bytes."""

    def __init__(self, data, tail=True):
        self._data = data
        self._tail = tail
        self.size = len(data)
        self.shown = 0

    def head(self, length):
        self.shown = max(self.shown, length)
        return self._data[:length]

    def tail(self, length):
        return self._data[-length:] if self._tail else b''


class TestInspectSource(test_base.BaseTestCase):
    def check(self, content, size, data, claimed, tail=True):
        inspection = formats.inspect_source(Source(data, tail), claimed)
        self.assertEqual(content, str(inspection))
        self.assertEqual(size, inspection.virtual_size)

    def test_a_fixed_vhd(self):
        data = NOISE + vhd_footer(size=SIZE)
        for claimed in (None, 'vhd', 'qcow2', 'vmdk'):
            self.check('vhd', SIZE, data, claimed)
        # Whoever says that it is raw takes its footer, too.
        self.check('raw', None, data, 'raw')
        self.check('gpt', None, mbr() + vhd_footer(), 'gpt')

    def test_a_fixed_vhd_that_does_not_show_its_end(self):
        data = NOISE + vhd_footer(size=SIZE)
        self.check('vhd', SIZE, data, 'vhd', tail=False)
        self.check('raw', None, data, None, tail=False)
        self.check('raw', None, data, 'vmdk', tail=False)

    def test_metadata_far_away(self):
        for at in (formats.HEAD - units.Ki, 3 * units.Mi, 31 * units.Mi):
            data = vhdx(at=at)
            self.check('vhdx', units.Gi, data, None)
            self.check('vhdx', units.Gi, data, 'vhdx')

    def test_metadata_too_far_away(self):
        for at in (units.Gi, 2**63):
            data = vhdx()[:SIZE]
            place = data.index(struct.pack('<Q', 320 * units.Ki))
            source = Source(put(data, place, struct.pack('<Q', at)))
            inspection = formats.inspect_source(source, None)
            self.assertIsNone(inspection.virtual_size)
            self.assertEqual((CORRUPT,), inspection.unsafe)
            self.assertLessEqual(source.shown, 32 * units.Mi)
