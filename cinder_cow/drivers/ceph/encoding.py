# SPDX-License-Identifier: Apache-2.0
"""Texts as Ceph stores and sends them: their length, then their bytes."""

import struct


def packed(text: str) -> bytes:
    data = text.encode()
    return struct.pack('<I', len(data)) + data


def unpacked(data: bytes, offset: int = 0) -> tuple[str, int]:
    """Read a text, and tell where it ends; '' where there is none."""
    if len(data) < offset + 4:
        return '', offset
    (length,) = struct.unpack_from('<I', data, offset)
    end = offset + 4 + length
    return data[offset + 4 : end].decode(errors='replace'), end
