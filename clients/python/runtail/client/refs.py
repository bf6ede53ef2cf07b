"""What names a run that is to be written: a text that any queue carries. No calls."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

KEY_MAX_CHARS = 255
"""Of an idempotency key."""


@dataclass(frozen=True, slots=True)
class Ref:
    """A run: the request that starts it, whose it is, and the key under which the same request is the same run."""

    key: str
    user: str | None
    body: Mapping[str, Any]

    @classmethod
    def new(cls, user: str | None, body: Mapping[str, Any], key: str | None) -> "Ref":
        """:param key: None: a run of its own."""
        return cls(key or uuid4().hex, user, body)

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Of the text that `str` gives."""
        about = json.loads(text)
        return cls(about["key"], about["user"], about["body"])

    def __str__(self) -> str:
        return json.dumps({"key": self.key, "user": self.user, "body": self.body})

    def followed_by(self, end: str) -> "Ref":
        """Another run, that is asked for in the same way; with an empty end this one."""
        if not end:
            return self
        key = _hash(f"{self.key}{end}")
        # By that name it can be looked for without starting it.
        return replace(self, key=key, body={**self.body, "client_run_id": key})


def fitting_key(name: str) -> str:
    """An idempotency key of a name that may be longer than one."""
    return name if len(name) <= KEY_MAX_CHARS else _hash(name)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
