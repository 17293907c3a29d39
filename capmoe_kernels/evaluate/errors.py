"""The errors that a user of the command can mend."""


class UsageError(Exception):
    """Something about the request is wrong. The command prints it as one line and exits with 2."""
