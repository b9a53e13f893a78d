# SPDX-License-Identifier: Apache-2.0
"""Make a base of a volume's blocks, where the file system can share them."""

import os
import pathlib

from cinder_cow import exception
from cinder_cow import refusal
from cinder_cow.drivers import file_reader
from cinder_cow.drivers import file_sinks


def check(path: pathlib.Path, descriptor: int, size: int) -> None:
    """Refuse an open volume that cannot be linked; nothing is changed.

    :param size: bytes of the content that it shall have
    :raises BackendError: NOT_LINKABLE
    """
    problem = ''
    if path.suffix != '.raw':
        problem = 'it is an overlay over another base'
    elif os.fstat(descriptor).st_size < size:
        problem = f'it has less than {size} bytes'
    elif file_reader.is_open_for_writing(descriptor):
        problem = 'somebody has it open for writing'
    if problem:
        raise _not_linkable(path, problem)


def link(
    path: pathlib.Path, descriptor: int, sink: file_sinks.BaseSink
) -> None:
    """Give a sink the blocks of an open volume.

    :raises BackendError: NOT_LINKABLE; the sink is left then
    """
    try:
        if sink.share_file(descriptor):
            return
    except BaseException:
        sink.abort()
        raise
    # What is kept stays for who copies the volume.
    sink.leave()
    raise _not_linkable(path, 'its file system shares no blocks between files')


def _not_linkable(path: pathlib.Path, problem: str) -> exception.BackendError:
    return exception.BackendError.because(
        refusal.Reason.NOT_LINKABLE, volume=path.stem, problem=problem
    )
