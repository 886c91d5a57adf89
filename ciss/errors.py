"""The one exception that a user is meant to read."""


class CissError(Exception):
    """A wrong setting, a missing file or bad data.

    The message is one or two sentences that say what is wrong, where, and what to do about it.
    Scripts print it without a traceback and exit with status 1.
    """


#: what to do where packages are missing or of other versions
INSTALL = "install the versions of constraints.txt, with make setup or as docs/environments.md says"


def import_error(error: ImportError) -> str:
    """Say what a failed import means: a package that is not there, or of another version."""
    if isinstance(error, ModuleNotFoundError):
        return f"the Python package '{(error.name or '?').partition('.')[0]}' is missing; {INSTALL}"
    return f"the installed packages do not fit this code ({error}); {INSTALL}"
