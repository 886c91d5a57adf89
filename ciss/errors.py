"""The one exception that a user is meant to read."""


class CissError(Exception):
    """A wrong setting, a missing file or bad data.

    The message is one or two sentences that say what is wrong, where, and what to do about it.
    Scripts print it without a traceback and exit with status 1.
    """
