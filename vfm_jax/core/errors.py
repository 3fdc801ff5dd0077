"""The two kinds of failure a user can mend; the command line prints them without a traceback."""


class UserError(ValueError):
    """Something the user gave cannot be used: the message says what, what was expected, and the next move."""


class TrainingError(RuntimeError):
    """The run cannot go on (non-finite loss, unreadable data): the message says where and the next move."""
