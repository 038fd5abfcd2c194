"""Alembic's migrations of the bot's tables: one file per version of the schema, for SQLite and PostgreSQL.

`bot.store.upgrade` runs them at the start of the bot. A new version is a file here, the same change in `bot.store.schema`
and its number in `SCHEMA_VERSION`; tests/bot/store/test_upgrade.py compares the two on both databases.
"""
