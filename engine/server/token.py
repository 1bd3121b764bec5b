"""The token that every request must carry."""

import os
import secrets

from engine.errors import UserError

TOKEN_VARIABLE = "VLSM_TOKEN"
SHORTEST_TOKEN = 16


def chosen_token() -> str:
    """Return a fresh token, or the one of the environment; it is no option, which others could see.

    Raises:
        UserError: the one of the environment is too short, or cannot be sent.
    """
    token = os.environ.get(TOKEN_VARIABLE) or secrets.token_urlsafe(32)
    if len(token) < SHORTEST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise UserError(f"{TOKEN_VARIABLE} must have {SHORTEST_TOKEN} or more ASCII characters, without spaces")
    return token
