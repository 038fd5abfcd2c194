"""Collectors: one file a source of evidence. Each reads, judges nothing, keeps its own deadline, and says why it could not."""


class CollectorFailed(Exception):
    """The source exists but could not be read: its checks become unknown. The message is one line for people."""


class CollectorSkipped(Exception):
    """The source does not apply to this host: its checks are left out. The message says why."""
