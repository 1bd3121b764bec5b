"""The one exception that is meant for people."""

LONGEST_MESSAGE = 1000  # signs; what is quoted from a file may be of any length


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, with which file or value, and what to do.

    Commands print the message as one line and exit with code 2; nothing has been written. The middle of a long
    message is left out.
    """

    def __init__(self, message: str):
        message = message.encode("utf-8", "backslashreplace").decode()  # it may quote what is no text
        half = LONGEST_MESSAGE // 2
        super().__init__(message if len(message) <= LONGEST_MESSAGE else f"{message[:half]} … {message[-half:]}")


class Cancelled(Exception):
    """The user asked a running job to stop; nothing has been written."""
