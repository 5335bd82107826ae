"""Errors for the user: what was wrong, where, and what to do. The CLI prints them as one line."""


class UserError(Exception):
    """Something that the user can mend; shown without a traceback."""
