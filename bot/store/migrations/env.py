"""Run the migrations on the connection, and in the transaction, of `bot.store.upgrade`."""

from alembic import context

from bot.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True
)
context.run_migrations()
