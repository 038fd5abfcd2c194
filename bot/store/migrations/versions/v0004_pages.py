"""Pages to the on-call, kept from before they are sent until they are closed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the table of pages."""
    op.create_table(
        "pages",
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("host", sa.String(64), nullable=False),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("page", sa.JSON, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("sent_at", sa.Double),
        sa.Column("close_asked_at", sa.Double),
        sa.Column("closed_at", sa.Double),
    )
