"""A folder of tensors named by the hash of all that determines them: made once, written whole, locked while made."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from condkd_ray.core.files import whole
from condkd_ray.core.method import InputError


def default_cache() -> Path:
    """`$CONDKD_CACHE`, or a folder in the user's cache home."""
    home = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return Path(os.environ.get("CONDKD_CACHE", home / "condkd"))


def cached(path: Path, make: Callable[[], dict[str, Tensor]], what: str) -> dict[str, Tensor]:
    """The tensors at `path`, made if they are not there; of two processes at once the second waits for the first.

    `what` is written into the file for a reader. Raises `InputError` where the folder cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise InputError(f"--cache is {str(path.parent)!r}; accepted: a folder that can be written ({error})") from None
    try:
        if not path.is_file():
            tensors = make()
            with whole(path) as partial:
                save_file(tensors, partial, metadata={"what": what})
                # It is made for its owner alone, but caches are meant to be shared.
                partial.chmod(0o644)
    finally:
        lock.release()
    return load_file(path)
