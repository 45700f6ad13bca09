"""The one kind of error that is a user's to mend."""


class UserError(Exception):
    """A mistake the user can mend; its message is one sentence that says where and what to do."""


class Stopped(Exception):
    """A run was asked to end and has saved what it takes to go on; the message says how."""
