"""Where a study lies: a journal file, or a database that machines share.

Owns what may be written for it and how its failures are told. Knows nothing of trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.layout import Layout
from server.errors import ServerError

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_INSTALL = 'Try: pip install "inference-unlimited[search]".'
_DATABASES = "sqlite:///FILE, postgresql://HOST/NAME or mysql://HOST/NAME"


class StudyError(ServerError):
    """A study cannot be opened, read or written."""

    code = "study"


def is_url(storage: str) -> bool:
    """Whether it is a database's address; anything else is a file's path."""
    return "://" in storage


def journal_in(store: Path, name: str) -> str:
    """Where a study's journal lies when a config names no place."""
    return str(Layout(store).studies / f"{name}.log")


def open_storage(storage: str) -> BaseStorage:
    """Open a journal file, made where it is missing, or a database by its address.

    Raises:
        StudyError: Optuna or the database's driver is missing, or neither can be opened.
    """
    try:
        import optuna
    except ImportError as error:
        raise StudyError(f"Searching needs Optuna ({error}).", remedy=_INSTALL) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with storing(storage):
        if is_url(storage):
            return optuna.storages.RDBStorage(storage)
        from server.search.journal import open_journal

        return optuna.storages.JournalStorage(open_journal(Path(storage).expanduser()))


@contextmanager
def storing(storage: str) -> Iterator[None]:
    """Tell what goes wrong with a storage in words, without what an address may hold in secret.

    Raises:
        StudyError: The storage could not be read or written.
    """
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    name = "The search's database" if is_url(storage) else f"The search's journal {storage}"
    try:
        yield
    except (ArgumentError, NoSuchModuleError, ImportError) as error:
        raise StudyError(
            f"{name} is of no kind that can be opened: {type(error).__name__}.",
            remedy=f"Give a file, or {_DATABASES} with its driver installed.",
        ) from error
    except (StorageInternalError, SQLAlchemyError) as error:
        raise StudyError(
            f"{name} does not answer: {type(error).__name__}.",
            remedy="Is it up, and are the address and the rights right?",
        ) from error
    except OSError as error:
        raise StudyError(
            f"{name} cannot be used: {error.strerror or error}.",
            remedy="Name a file that this user may write with --storage.",
        ) from error
    except (ValueError, KeyError) as error:
        if is_url(storage):
            raise
        raise StudyError(
            f"{name} is no journal of a search, or is damaged: {type(error).__name__}.",
            remedy="Name another file with --storage; what was built stays in the store.",
        ) from error
