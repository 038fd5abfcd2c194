"""The tables of the versions that had no migrations. An existing database without a version is at this one."""

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Do nothing: the tables are there."""
