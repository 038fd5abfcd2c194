"""Chain the audit trail: each entry carries a hash over itself and over the hash of the entry before it.

Entries from before this version get their hashes here: a later change of them is noticed, an earlier one cannot be.
"""

import sqlalchemy as sa
from alembic import op

from bot.store.audit_chain import GENESIS, chain_hash, stored_content

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column and the end of the chain, and hash the entries that exist."""
    with op.batch_alter_table("timeline") as table:
        table.add_column(sa.Column("hash", sa.String(64), nullable=False, server_default=""))
    chain = op.create_table(
        "audit_chain",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("anchor", sa.String(64), nullable=False),
        sa.Column("anchor_id", sa.Integer, nullable=False),
    )
    connection = op.get_bind()
    rows = sa.table(
        "timeline",
        *(
            sa.column(name)
            for name in ("id", "at", "incident_id", "run_id", "host", "actor", "kind", "text", "hash")
        ),
        sa.column("data", sa.JSON),
    )
    last = GENESIS
    for row in connection.execute(rows.select().order_by(rows.c.id)).all():
        last = chain_hash(last, stored_content(row))
        connection.execute(rows.update().where(rows.c.id == row.id).values(hash=last))
    connection.execute(chain.insert().values(id=1, hash=last, anchor=GENESIS, anchor_id=0))
