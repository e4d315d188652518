"""Errors that are meant to be read by the person who runs the program."""


class UserError(ValueError):
    """Something the user can put right; the message names the value, what was expected and what to do.

    Command-line entry points print the message alone and exit with status 2.
    """
