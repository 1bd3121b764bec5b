"""The one exception that is meant for people."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, with which file or value, and what to do.

    Commands print the message as one line and exit with code 2; nothing has been written.
    """


class Cancelled(Exception):
    """The user asked a running job to stop; nothing has been written."""
