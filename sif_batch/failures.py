"""Why an image cannot be used: the short closed list of kinds, each with what it means and what to do."""

import contextlib
import errno
from collections.abc import Iterator

# Nothing but other bytes, or other settings with --retry-failed, changes these ...
PERMANENT = {
    "not_an_image": ("no format that is known", "remove it, or leave it out with --exclude"),
    "corrupt": ("its format is known, its bytes make no image", "restore it from a good copy"),
    "truncated": ("it ends too early", "copy it again from where it is whole"),
    "too_large": ("more pixels or bytes than the limit", "--retry-failed with a larger --max-pixels or --max-bytes"),
    "unsupported": ("a variant that is not read here", "convert it, or install the extra that its message names"),
    "not_finite": ("its vector does not fit float16", "look at the network and its preprocessing: it overflows"),
    "erased": ("its bytes were erased from this ROOT", "remove it from its source: sif-batch erase keeps it out"),
    "duplicate_key": ("another file has the same name, escaped and in Unicode NFC", "rename one of the two"),
}
# ... and these are tried again on later nights, up to --max-attempts.
TRANSIENT = {
    "unreadable": ("reading it failed", "see to the disk or the store"),
    "missing": ("it was listed and was gone when it was read", "nothing: the next night lists anew"),
    "forbidden": ("this user may not read it", "see to its rights or credentials"),
    "timeout": ("reading or decoding it took too long", "--image-timeout with more seconds, or remove it"),
    "short_read": ("fewer bytes came than were listed", "nothing: the next night reads it again"),
    "changed": ("it changed after it was listed", "nothing: the next night lists anew"),
    "crashed": (
        "its decoder ended the worker process, or the network failed",
        "convert it, or leave it out with --exclude",
    ),
}


class ImageError(ValueError):
    """This image, or container of images, cannot be used: `kind` is one of PERMANENT or TRANSIENT."""

    def __init__(self, kind: str, message: str):
        super().__init__(message)
        self.kind = kind


@contextlib.contextmanager
def telling_io() -> Iterator[None]:
    """What a filesystem raises as ImageError of a transient kind; the machine's own trouble as it is."""
    try:
        yield
    except FileNotFoundError as error:
        raise ImageError("missing", "it was listed and is gone") from error
    except PermissionError as error:
        raise ImageError("forbidden", "this user may not read it") from error
    except TimeoutError as error:
        raise ImageError("timeout", f"reading it took too long ({error})") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EMFILE, errno.ENFILE):
            raise
        raise ImageError("unreadable", f"{type(error).__name__}: {error}"[:500]) from error
