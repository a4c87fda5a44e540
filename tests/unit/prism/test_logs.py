"""Log lines: for people and for machines, both with what they are about."""

import io
import json
import logging

import pytest

from prism.logs import JsonLines, TextLines


@pytest.fixture
def logger() -> logging.Logger:
    made = logging.Logger("prism.test")
    made.addHandler(logging.StreamHandler(io.StringIO()))
    return made


def said(logger: logging.Logger) -> str:
    (handler,) = logger.handlers
    assert isinstance(handler, logging.StreamHandler)
    return handler.stream.getvalue()


def test_a_json_line_holds_ids_and_the_exception(logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(JsonLines())
    try:
        raise ValueError("no such image")
    except ValueError:
        logger.exception("group %s", "failed", extra={"run": "demo", "position": 0, "attempt": None})
    (text,) = said(logger).splitlines()
    line = json.loads(text)
    assert (line["level"], line["message"], line["run"], line["position"]) == ("error", "group failed", "demo", 0)
    assert "attempt" not in line
    assert "ValueError: no such image" in line["exception"]


def test_a_line_for_people_ends_with_the_ids(logger: logging.Logger) -> None:
    logger.handlers[0].setFormatter(TextLines("%(levelname)s %(message)s"))
    logger.warning("late", extra={"run": "demo", "policy_version": 3})
    logger.warning("alone")
    assert said(logger) == "WARNING late [run=demo policy_version=3]\nWARNING alone\n"
