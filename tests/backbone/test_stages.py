"""Stages: silent without a recorder, nested calls with one, gone after the `with`."""

from __future__ import annotations

import pytest

from vitgs.backbone.stages import recording, stage


class Log:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def enter(self, name: str) -> None:
        self.calls.append(f"+{name}")

    def exit(self, name: str) -> None:
        self.calls.append(f"-{name}")


def test_nested_and_closed_on_error() -> None:
    log = Log()
    with stage("head"):
        pass
    with recording(log), pytest.raises(ZeroDivisionError), stage("backbone"), stage("merge"):
        raise ZeroDivisionError
    with stage("head"):
        pass
    assert log.calls == ["+backbone", "+merge", "-merge", "-backbone"]
