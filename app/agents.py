"""Agents as a web process knows them, and whether they take an input."""

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.protocols import Validator
from jsonschema.validators import extend

from app.errors import InvalidInput, UnknownAgent
from app.storage.run_store import AgentRecord, Registry
from app.turns import give_way

_check_type = Draft202012Validator.VALIDATORS["type"]


def _type(validator: Any, types: Any, instance: Any, schema: Any) -> Any:
    """The keyword `type`, which stands at nearly every value of a schema: a long check gives way here."""
    give_way()
    return _check_type(validator, types, instance, schema)


def _unique_items(validator: Any, unique: bool, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """The keyword `uniqueItems`; the library's own compares each item with each other one."""
    if not unique or not validator.is_type(instance, "array"):
        return
    if len({json.dumps(_plain(item), sort_keys=True) for item in instance}) < len(instance):
        yield ValidationError("has non-unique elements")


def _plain(value: Any) -> Any:
    """Of values that are equal in JSON Schema, such as 1 and 1.0, one and the same; true and 1 are not equal."""
    give_way()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


# JSON Schema calls 5.0 an integer; the agents' own schemas do not.
_Validator = extend(
    Draft202012Validator,
    {"type": _type, "uniqueItems": _unique_items},
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    ),
)


class KnownAgents:
    """Agents, as this process has last read them.

    Nobody is told of a later registration, so the store creates no run whose agent was registered anew: it is read
    again then. Nothing is refused because of an older one either.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known: dict[str, tuple[AgentRecord, Validator]] = {}
        """By name. Only agents that are registered: there are as many as the deployment has."""

    def that_takes(self, name: str, input: dict[str, Any]) -> AgentRecord:
        """The agent of this name, which takes the input.

        :raises UnknownAgent: no worker has registered it.
        :raises InvalidInput: the input does not fit its schema.
        :raises StoreUnavailable: Postgres cannot be reached.
        """
        known, validator = self._known.get(name, (None, None))
        error = _error(validator, input) if validator else None
        if known is not None and error is None:
            return known
        agent = self._registry.agent(name)
        if agent is None:
            raise UnknownAgent(f"There is no agent {name!r}.")
        if agent != known or validator is None:
            validator = _Validator(agent.input_schema)
            error = _error(validator, input)
        if error is not None:
            raise InvalidInput(f"{error.json_path}: {error.message}"[:500])
        self._known[name] = agent, validator
        return agent

    def forget(self, name: str) -> None:
        """Read it again when it is asked for next."""
        self._known.pop(name, None)


def _error(validator: Validator, input: dict[str, Any]) -> ValidationError | None:
    return next(iter(validator.iter_errors(input)), None)
