"""Where each answer leads, as links of the OpenAPI document: from a run to the calls on it, from a page to the next.

`run_id` and the rest are runtime expressions of OpenAPI, of the answer that has the link or of its request.
"""

from typing import Any

_AS_WRITER = "Of an external run, with the `writer_token` of this answer as the bearer."

Link = dict[str, Any]


def add_links(document: dict[str, Any]) -> None:
    """Give the document's responses their links."""
    for (path, method, *statuses), links in _links().items():
        for status in statuses:
            document["paths"][path][method]["responses"][status].setdefault("links", {}).update(links)


def _links() -> dict[tuple[str, ...], dict[str, Link]]:
    """By path, method and statuses."""
    run, answered = "/runs/{run_id}", _of_run("$response.body#/run_id")
    return {
        ("/runs", "post", "200", "202"): {**answered, **_to_write(), "GetSession": _session()},
        (run, "get", "200"): {"GetRest": _rest(), **_some(answered, "Decide", "SendInput")},
        (run, "delete", "200", "202"): _some(answered, "GetRun", "EraseRun"),
    }


def _of_run(run_id: str) -> dict[str, Link]:
    """The calls on a run, and what shows it."""
    path, of_run = "/runs/{run_id}", {"run_id": run_id}
    return {
        "GetRun": _link(path, "get", of_run),
        "GetEvents": _link(f"{path}/events", "get", of_run),
        "GetPage": _link(f"{path}/events", "get", {**of_run, "header.Accept": "application/json"}),
        "GetSeveral": _link("/events", "get", {"runs": run_id}),
        "CancelRun": _link(f"{path}/cancel", "post", of_run),
        "DeleteRun": _link(path, "delete", of_run),
        "EraseRun": _link(f"{path}/erase", "post", of_run),
        "SendInput": _link(f"{path}/input", "post", of_run),
        "GetApprovals": _link("/approvals", "get", {"run": run_id}),
        "Decide": _link(f"{path}/approvals/{{approval_id}}", "post", of_run),
    }


def _some(links: dict[str, Link], *names: str) -> dict[str, Link]:
    return {name: links[name] for name in names}


def _to_write() -> dict[str, Link]:
    """The calls of an external run's first writer."""
    path, writer = "/runs/{run_id}", {"run_id": "$response.body#/run_id", "header.Producer-Epoch": "1"}
    first = {**writer, "header.Producer-Seq": "1"}
    links = {
        "Append": _link(f"{path}/events", "post", first),
        "Heartbeat": _link(f"{path}/heartbeat", "post", writer),
        "Finish": _link(f"{path}/finish", "post", first, {"status": "completed", "output": None}),
    }
    return {name: {**link, "description": _AS_WRITER} for name, link in links.items()}


def _session() -> Link:
    """All runs of the run's session."""
    return _link("/runs", "get", {"session": "$response.body#/session_id"})


def _rest() -> Link:
    """What happens after the state that was answered."""
    since = {"run_id": "$response.body#/run_id", "since_seq": "$response.body#/state_seq"}
    return _link("/runs/{run_id}/events", "get", since)


def _link(path: str, method: str, parameters: dict[str, Any] | None = None, body: Any = None) -> Link:
    escaped = path.replace("~", "~0").replace("/", "~1")
    link: Link = {"operationRef": f"#/paths/{escaped}/{method}"}
    if parameters:
        link["parameters"] = parameters
    return link if body is None else {**link, "requestBody": body}
