# SPDX-License-Identifier: Apache-2.0
"""Export a volume to a raw file outside of the back end."""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import tempfile

from cinder_cow import direct_io
from cinder_cow import exception
from cinder_cow import sparse
from cinder_cow import streaming
from cinder_cow.drivers import base
from cinder_cow.refusal import Reason

# What file systems answer that have no O_TMPFILE: open(2), and NFS.
_NO_UNNAMED = {errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL}


def export(
    reader: base.Reader,
    path: pathlib.Path,
    report: streaming.Progress,
) -> None:
    """Write a volume's bytes to a new file, with its holes as holes.

    :raises RequestError: EXPORT_EXISTS, EXPORT_FAILED
    :raises BackendError: BUSY: the volume was written to meanwhile
    """
    with new_file(path) as descriptor:
        file = direct_io.DirectWriter(os.dup(descriptor), reader.size)
        with contextlib.closing(file):
            _copy(reader, file, report)
            file.flush()
        reader.check_unchanged()


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[int]:
    """Open a file that gets its name when the block has filled it.

    Where the block fails there is no file; none that exists is overwritten.

    :raises RequestError: EXPORT_EXISTS; EXPORT_FAILED, also for an OSError
        of the block
    """
    try:
        _check_free(path)
        with _unnamed(path.parent) as descriptor:
            yield descriptor
            _name(descriptor, path)
    except FileExistsError:
        raise exception.RequestError.because(
            Reason.EXPORT_EXISTS, path=str(path)
        ) from None
    except OSError as error:
        raise exception.RequestError.because(
            Reason.EXPORT_FAILED, path=str(path), problem=str(error)
        ) from error


def _check_free(path: pathlib.Path) -> None:
    """Find out before all the work, and not only at its end."""
    if os.path.lexists(path):
        raise FileExistsError


def _copy(
    reader: base.Reader,
    file: direct_io.DirectWriter,
    report: streaming.Progress,
) -> None:
    done = 0
    for piece in sparse.pieces(reader.extents(), reader.read):
        sparse.put(file, piece)
        done += piece if isinstance(piece, int) else len(piece)
        report('exporting', done, reader.size)


@contextlib.contextmanager
def _unnamed(directory: pathlib.Path) -> Iterator[int]:
    """Open a file that goes away with us, however we go."""
    try:
        descriptor = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in _NO_UNNAMED:
            raise
        # Then a name is needed; it survives us only if we are killed.
        with tempfile.NamedTemporaryFile(
            dir=directory, prefix='.cow-export-'
        ) as file:
            yield file.fileno()
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _name(descriptor: int, path: pathlib.Path) -> None:
    """Give an unnamed file its name, which must be free (open(2))."""
    # Python calls linkat(), which can follow, only with a directory's
    # descriptor; an absolute path is not looked up there.
    os.link(
        f'/proc/self/fd/{descriptor}',
        path,
        src_dir_fd=descriptor,
        follow_symlinks=True,
    )
