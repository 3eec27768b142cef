"""Logs as one JSON object a line. What is logged never holds values of resources, tokens or queries."""

from __future__ import annotations

import datetime as dt
import json
import logging


class JsonLines(logging.Formatter):
    """time, level, logger, message; ``decision`` where the record is about one exchange; an error's type and place."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(timespec="milliseconds")
        entry = {"time": moment, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        decision = getattr(record, "decision", None)
        if decision:
            entry["decision"] = decision
        if record.exc_info and record.exc_info[0]:
            entry["error"] = record.exc_info[0].__name__
        return json.dumps(entry, ensure_ascii=False)


def to_stderr(level: int = logging.INFO) -> None:
    """All logs to standard error, as JSON lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # one line for whatever a stranger sends is a flood
