"""How a request can end. Only `ok` counts as served; the other classes are the keys of the report's errors."""

from enum import IntEnum


class Outcome(IntEnum):
    """The class of a request, one byte in the record. The numbers are part of the worker protocol only, not of any file."""

    UNSENT = 0
    UNFINISHED = 1
    OK = 2
    ERROR_EVENT = 3
    CUT_STREAM = 4
    MISSING_DONE = 5
    WRONG_FINISH_REASON = 6
    MISSING_USAGE = 7
    EMPTY_RESPONSE = 8
    WRONG_TOKEN_COUNT = 9
    STALL = 10
    TIMEOUT = 11
    CONNECTION_REFUSED = 12
    CONNECTION_RESET = 13
    CONNECT_FAILED = 14
    TLS_ERROR = 15
    HTTP_429 = 16
    HTTP_503 = 17
    HTTP_4XX = 18
    HTTP_5XX = 19
    BAD_RESPONSE = 20
    CLIENT_RESOURCE = 21

    @property
    def label(self) -> str:
        """The name used in files and messages."""
        return self.name.lower()


MEANINGS: dict[Outcome, str] = {
    Outcome.UNFINISHED: "still running when the drain ended",
    Outcome.ERROR_EVENT: "HTTP 200, then an error event inside the stream",
    Outcome.CUT_STREAM: "the stream ended before its finish_reason",
    Outcome.MISSING_DONE: "the stream ended without [DONE]",
    Outcome.WRONG_FINISH_REASON: "finish_reason is missing or is not the one asked for",
    Outcome.MISSING_USAGE: "the stream carried no usage",
    Outcome.EMPTY_RESPONSE: "no chunk carried any text",
    Outcome.WRONG_TOKEN_COUNT: "usage disagrees with the number of tokens asked for",
    Outcome.STALL: "the stream went silent in the middle",
    Outcome.TIMEOUT: "no full answer by the deadline",
    Outcome.CONNECTION_REFUSED: "nothing listens at the address",
    Outcome.CONNECTION_RESET: "the connection closed before an answer began",
    Outcome.CONNECT_FAILED: "no connection could be made",
    Outcome.TLS_ERROR: "TLS failed",
    Outcome.HTTP_429: "turned away: too many requests",
    Outcome.HTTP_503: "turned away: service unavailable",
    Outcome.HTTP_4XX: "the request was refused",
    Outcome.HTTP_5XX: "the server failed",
    Outcome.BAD_RESPONSE: "the answer is not a completion stream",
    Outcome.CLIENT_RESOURCE: "the generator ran out of sockets or ports",
}

CENSORED = (Outcome.UNFINISHED, Outcome.TIMEOUT, Outcome.STALL)
"""Requests that we ended while they were running. Percentiles count them as longer than all that ended."""
DEAD_ENGINE = (Outcome.CONNECTION_REFUSED, Outcome.CONNECTION_RESET, Outcome.CONNECT_FAILED)
SHED = (Outcome.HTTP_429, Outcome.HTTP_503)
