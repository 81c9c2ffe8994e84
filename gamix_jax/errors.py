"""The one error a user is meant to read."""


class UserError(Exception):
  """A mistake of the user, or a fault only the user can fix.

  The message says what is wrong, where, and what to do, in one or two lines.
  `main` and the other commands print it without a traceback and exit with 2.
  """
