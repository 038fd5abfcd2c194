"""Pages as rows: kept before anything is sent, so that a bot that is killed sends and closes them after its next start."""

from collections.abc import Callable

import sqlalchemy as sa

from bot.store.records import IncidentStatus
from bot.store.row_to_record import readable
from bot.store.schema import incidents, pages
from bot.store.store import Store
from bot.watch.pager_kinds import Page

KEPT_S = 86_400.0
"""A page that no pager took for a day is dropped: newer checks say what is true now."""

_unsent = pages.c.sent_at.is_(None)
_closing = sa.and_(pages.c.close_asked_at.is_not(None), pages.c.closed_at.is_(None))


class PageRows:
    """The rows. Methods block for a millisecond or two."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def keep(self, key: str, source: str, page: Page, *, wait_s: float) -> bool:
        """Keep a page that is due in `wait_s`, unless it is known. Return False if it was sent already."""
        now = self._store.clock()
        with self._store.database.write() as connection:
            known = connection.execute(sa.select(pages.c.sent_at).where(pages.c.key == key)).one_or_none()
            if known is not None:
                return known.sent_at is None
            values = {"key": key, "host": page.host, "source": source, "page": page.model_dump(mode="json")}
            connection.execute(pages.insert().values(**values, at=now, due_at=now + wait_s))
        return True

    def unsent(self, key: str) -> Page | None:
        """Return a page that is still to be sent."""
        return self._page(key, _unsent)

    def closing(self, key: str) -> Page | None:
        """Return a page that was sent and is to be closed."""
        return self._page(key, _closing)

    def drop_unsent(self, key: str) -> None:
        """Forget a page that need not be sent any more."""
        with self._store.database.write() as connection:
            connection.execute(pages.delete().where(pages.c.key == key, _unsent))

    def sent(self, key: str) -> None:
        self._set(key, sent_at=self._store.clock())

    def closed(self, key: str) -> None:
        self._set(key, closed_at=self._store.clock())

    def close(self, host: str, matches: Callable[[str, str], bool]) -> list[str]:
        """Ask for the end of a host's pages whose source and cause match; an unsent one is dropped. Return the keys."""
        with self._store.database.read() as connection:
            query = sa.select(pages.c.key, pages.c.source, pages.c.page).where(
                pages.c.host == host, pages.c.close_asked_at.is_(None)
            )
            keys = [row.key for row in connection.execute(query) if matches(row.source, row.page["cause"])]
        return self._ask_to_close(keys)

    def close_with_incidents(self) -> list[str]:
        """Ask for the end of the pages of hosts whose incident was closed since, by whomever. Return the keys."""
        is_open = sa.exists().where(
            incidents.c.host == pages.c.host, incidents.c.status == IncidentStatus.OPEN.value
        )
        was_closed = sa.exists().where(incidents.c.host == pages.c.host, incidents.c.closed_at >= pages.c.at)
        query = sa.select(pages.c.key).where(pages.c.close_asked_at.is_(None), was_closed, ~is_open)
        with self._store.database.read() as connection:
            keys = list(connection.execute(query).scalars())
        return self._ask_to_close(keys)

    def due(self) -> list[str]:
        """Return the keys of the pages to send now and to close. Drop those that are too old."""
        now = self._store.clock()
        with self._store.database.write() as connection:
            connection.execute(pages.delete().where(_unsent, pages.c.at < now - KEPT_S))
            wanted = sa.or_(sa.and_(_unsent, pages.c.due_at <= now), _closing)
            return list(connection.execute(sa.select(pages.c.key).where(wanted)).scalars())

    def _ask_to_close(self, keys: list[str]) -> list[str]:
        with self._store.database.write() as connection:
            these = pages.c.key.in_(keys)
            connection.execute(pages.delete().where(these, _unsent))
            connection.execute(pages.update().where(these).values(close_asked_at=self._store.clock()))
        return keys

    def _page(self, key: str, is_so: sa.ColumnElement[bool]) -> Page | None:
        with self._store.database.read() as connection:
            row = connection.execute(sa.select(pages.c.page).where(pages.c.key == key, is_so)).one_or_none()
        return None if row is None else readable(Page, row.page)

    def _set(self, key: str, **values: float) -> None:
        with self._store.database.write() as connection:
            connection.execute(pages.update().where(pages.c.key == key).values(**values))
