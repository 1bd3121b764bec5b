"""Answers other than yes, each with its HTTP status."""

from engine.errors import UserError


class Refusal(UserError):
    """A request that is not carried out.

    Attributes:
        status: the HTTP status; plain `UserError`s are answered with 400.
    """

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status
