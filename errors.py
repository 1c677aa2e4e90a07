"""What a user can be told in one sentence, and the exit status that goes with it.  Imports nothing."""


class UserError(Exception):
    """The user's input is wrong: configuration, arguments, a missing checkpoint, a device that is not there."""

    status = 2


class DataError(UserError):
    """Data or a file that was named is missing or damaged."""

    status = 3
