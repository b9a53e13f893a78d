# SPDX-License-Identifier: Apache-2.0
"""What the readers of VMDK, VHD, VDI and VHDX have in common.

Each of them has ``read``, which tells the size of the disk from the first
and the last bytes, and ``used``, which tells from the tables how much of the
disk is in the file, and where the file must end at least.
"""

import array
from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import os
import sys
from typing import Literal

from oslo_utils import units

from cinder_cow.refusal import Reason

SECTOR = 512
# Read at once: the tables of 16 TiB take 128 MiB.
_PIECE = units.Mi


class FormatError(Exception):
    """An image is not as its format demands, or not to be taken.

    :param problem: what is wrong, where the reason alone does not say it
    """

    def __init__(
        self, problem: str, reason: Reason = Reason.IMAGE_CORRUPT
    ) -> None:
        super().__init__(problem or reason.value)
        self.problem = problem
        self.reason = reason


@dataclasses.dataclass(frozen=True, slots=True)
class Used:
    """What the tables of an image refer to, in bytes.

    :param size: of the disk
    :param data: of the disk that are not holes; what is shared counts each
        time
    :param end: where the file must end at least
    """

    size: int
    data: int
    end: int


def entries(
    descriptor: int,
    offset: int,
    count: int,
    width: Literal[4, 8],
    order: Literal['big', 'little'] = 'little',
) -> Iterator[Sequence[int]]:
    """Read a table in pieces, or what there is of it.

    :param count: entries in the table
    :param width: bytes of an entry
    """
    end = offset + count * width
    while offset < end:
        data = os.pread(descriptor, min(_PIECE, end - offset), offset)
        piece = array.array('I' if width == 4 else 'Q')
        piece.frombytes(data[: len(data) // width * width])
        if not piece:
            return
        if sys.byteorder != order:
            piece.byteswap()
        yield piece
        offset += len(piece) * width


def numbered(pieces: Iterable[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Give each entry of a table with its number."""
    return enumerate(itertools.chain.from_iterable(pieces))


def require(descriptor: int, what: str, offset: int, length: int) -> None:
    """Make sure that a table lies in the file: cut, it reads as zeros.

    :raises FormatError: it does not
    """
    end, size = offset + length, os.fstat(descriptor).st_size
    if end > size:
        raise FormatError(f'its {what} ends at byte {end} of {size}')


def survey(
    descriptor: int,
    blocks: Iterable[tuple[int, int]],
    size: int,
    block: int,
    least: int,
) -> Used:
    """Add up blocks that are kept as they are.

    :param blocks: number and offset of each that is in the file
    :param size: bytes of the disk; its last block need not be whole
    :param block: bytes of a block
    :param least: where the file must end without them
    :raises FormatError: one is missing, or several are in one place
    """
    data, end, file_size = 0, least, os.fstat(descriptor).st_size
    for number, offset in blocks:
        length = min(block, size - number * block)
        data += length
        end = max(end, offset + length)
        # At once: a table of 16 TiB lasts 9 s.
        if end > file_size:
            raise FormatError(f'its data end at byte {end} of {file_size}')
        if data > file_size:
            raise FormatError('its blocks overlap')
    return Used(size, data, end)
