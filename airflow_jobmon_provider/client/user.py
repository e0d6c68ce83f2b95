"""Under which name Jobmon records who made a run."""

from __future__ import annotations

import getpass
import logging
import os

logger = logging.getLogger(__name__)


def current_user() -> str:
    """Return the name of this process's user: of LOGNAME, USER, LNAME or USERNAME, else of the user id.

    An id without an entry in the system's list of users, as containers have it, is a name itself:
    ``uid-50001``. A warning says so.
    """
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # by the version of Python
        user = f"uid-{os.getuid()}"
        logger.warning(
            "the user id %d has no name, so Jobmon records %r; LOGNAME sets one", os.getuid(), user
        )
        return user
