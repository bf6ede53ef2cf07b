"""One run as an answer, whose output and state, which may be megabytes, are sent as they are stored."""

import hashlib
import json
from collections.abc import Mapping

from flask import Response

from app.api.context import runtail
from app.api.negotiation import JSON_TYPE
from app.api.schemas import RunSchema
from app.pace import encoded, paced
from app.storage.run_store import RunRecord

PIECE_CHARS = 65_536
"""Of what is encoded, hashed and sent at a time."""

_LIGHT = RunSchema(exclude=("output",))


def alone(run: RunRecord) -> str:
    """JSON of a run without its state."""
    return f"{_head(run)}}}\n"


def with_state(run: RunRecord) -> str:
    """JSON of a run with its state as of now."""
    seq, _, text = runtail().services.history.snapshot(run)
    return f'{_head(run, state_seq=seq)}, "state": {text}}}\n'


def _head(run: RunRecord, **more: object) -> str:
    light = json.dumps({**_LIGHT.dump(run), **more}, ensure_ascii=False)
    return f'{light[:-1]}, "output": {run.output_text or "null"}'


def answer(text: str, status: int = 200, headers: Mapping[str, str] | None = None, *, tagged: bool = False) -> Response:
    """The response. `tagged`: with an ETag of its content."""
    content, seal = [], hashlib.sha256()
    for piece in encoded(text, PIECE_CHARS):
        content.append(piece)
        seal.update(piece)
    response = Response(paced(content), status, headers, mimetype=JSON_TYPE)
    response.content_length = sum(map(len, content))
    if tagged:
        response.set_etag(seal.hexdigest()[:32])
    return response
