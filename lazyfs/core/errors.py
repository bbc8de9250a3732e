"""One tree of errors; each class knows its errno and whether trying again may help.

Raised where the fact is known. Only the doors translate: `fuse.adapter` into errno, `cli` into one line and an
exit code, `store` from SDK exceptions into these.
"""

from __future__ import annotations

import errno


class LazyfsError(Exception):
    """Anything that lazyfs itself has to say. The message is one line for a person."""

    errno: int = errno.EIO
    transient: bool = False


class UsageError(LazyfsError):
    """The user asked for something that makes no sense; exit code 2."""

    errno = errno.EINVAL


class StartupError(LazyfsError):
    """The mount cannot work; exit code 1."""


class ControlError(LazyfsError):
    """A daemon refused a request on its control socket, or did not answer it."""


# -- what a store says --------------------------------------------------------------------------------------


class StoreError(LazyfsError):
    """The object store answered with an error that will not go away by asking again."""


class NotFoundError(StoreError):
    """No such key."""

    errno = errno.ENOENT


class NoSuchBucketError(StoreError):
    """No such bucket; distinct from a missing key, because it never means an empty directory."""


class NoSuchUploadError(StoreError):
    """The multipart upload is gone: completed, aborted or expired."""


class AccessDeniedError(StoreError):
    """The credentials do not allow this, or are wrong."""

    errno = errno.EACCES


class ExpiredCredentialsError(AccessDeniedError):
    """The credentials were good once. There may be others by now."""


class PreconditionFailedError(StoreError):
    """The object is not the version that the request named."""

    errno = errno.ESTALE


class StaleError(StoreError):
    """The version that was opened is no longer in the bucket, and this range of it is not resident."""

    errno = errno.ESTALE


class ArchivedError(StoreError):
    """The object sits in an archive storage class and has not been restored."""


class UnorderedListingError(StoreError):
    """The endpoint does not list in the order of keys, so that nothing follows from where a page ends."""


class NotSupportedByStoreError(StoreError):
    """The endpoint, or our client for it, cannot do this."""

    errno = errno.EOPNOTSUPP


class TransientStoreError(StoreError):
    """The endpoint could not answer now: asking again may help."""

    transient = True


class ThrottledError(TransientStoreError):
    """The endpoint asks us to slow down."""


class UnreachableError(TransientStoreError):
    """No connection: refused, reset, no such host, TLS failure."""


class StoreTimeoutError(TransientStoreError):
    """No answer in time."""


class TruncatedError(TransientStoreError):
    """Fewer bytes arrived than were promised."""


# -- what the engine of a cache says; never leaves the tier ---------------------------------------------------


class CacheError(LazyfsError):
    """The engine could not answer: no connection, no time, no entry."""


class CacheRefusedError(CacheError):
    """The engine is well, and does not take what it was given: it is full, or we may not write."""


# -- what the file system says ------------------------------------------------------------------------------


class FileSystemError(LazyfsError):
    """A call on the mount was refused."""


class NoEntryError(FileSystemError):
    """No such file or directory."""

    errno = errno.ENOENT


class StaleInodeError(FileSystemError):
    """The kernel asked for an inode that the namespace no longer has."""

    errno = errno.ESTALE


class ExistsError(FileSystemError):
    """The name is taken."""

    errno = errno.EEXIST


class NotDirectoryError(FileSystemError):
    """A directory was expected."""

    errno = errno.ENOTDIR


class IsDirectoryError(FileSystemError):
    """A file was expected."""

    errno = errno.EISDIR


class NotEmptyError(FileSystemError):
    """The directory has entries."""

    errno = errno.ENOTEMPTY


class BadNameError(FileSystemError):
    """The name cannot be part of a key."""

    errno = errno.EILSEQ


class NameTooLongError(FileSystemError):
    """A component over 255 bytes or a key over 1,024."""

    errno = errno.ENAMETOOLONG


class NoAttributeError(FileSystemError):
    """There is no such extended attribute."""

    errno = errno.ENODATA


class BadLinkError(FileSystemError):
    """A symbolic link whose object holds no target."""


class ReadOnlyError(FileSystemError):
    """The mount is read-only."""

    errno = errno.EROFS


class NotPermittedError(FileSystemError):
    """The mount's options forbid this."""

    errno = errno.EPERM


class NotSupportedError(FileSystemError):
    """lazyfs does not offer this call."""

    errno = errno.EOPNOTSUPP


class CrossDeviceError(FileSystemError):
    """Not possible in place; callers like mv copy instead."""

    errno = errno.EXDEV


class BadHandleError(FileSystemError):
    """The handle was not opened for this."""

    errno = errno.EBADF


class OutOfOrderError(FileSystemError):
    """A write that does not continue where the last one ended."""

    errno = errno.EINVAL


class TooBigError(FileSystemError):
    """More than an object can hold."""

    errno = errno.EFBIG


class BusyError(FileSystemError):
    """Somebody is writing the file."""

    errno = errno.EBUSY


class IndexTroubleError(FileSystemError):
    """No local disk holds the namespace any more."""

    errno = errno.EIO


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a person should read of a group: the first error of ours or Ctrl-C, else the group itself."""
    for error in group.exceptions:
        found = first_error(error) if isinstance(error, BaseExceptionGroup) else error
        if isinstance(found, LazyfsError | KeyboardInterrupt):
            return found
    return group


class NoRoomError(FileSystemError):
    """What is being written has no room left on this machine."""

    errno = errno.ENOSPC


class SpoolError(FileSystemError):
    """The local disk that holds what is being written failed."""

    errno = errno.EIO
