"""`Runtail`: one server, seen by one caller. Starts, reads, follows and steers runs, and opens those to be written."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from runtail.client import queues
from runtail.client.block import RunBlock, never
from runtail.client.claiming import JobRuns
from runtail.client.connection import ASK_SECONDS, Connection
from runtail.client.jobs import as_job
from runtail.client.patience import FINISH_SECONDS, Patience
from runtail.client.refs import Ref, fitting_key
from runtail.client.requests import Lease
from runtail.client.sender import Sender
from runtail.client.watch import Envelope, Watch
from runtail.errors import RunEnded
from runtail.values import given

BUFFER_BYTES = 8_000_000
"""With so many bytes of events unsent, as when the server is away, the verbs of a run block."""
EVENTS_PAGE = 1_000
EXTERNAL = "external"


@dataclass(frozen=True, slots=True)
class Opened:
    """A run that was opened to be written, by whoever has `ref`.

    :ivar status: completed, failed or cancelled where it has ended before.
    :ivar watch_token: reads this run and nothing else: fit to be given to the user's browser.
    :ivar watch_url: the stream of its events with that token, for an EventSource: see `Runtail.watch_url`.
    :ivar ref: what the writer needs: `client.run(ref=…)`. A text, so that every queue can carry it.
    """

    run_id: str
    status: str
    session_id: str
    watch_token: str
    watch_url: str
    ref: str


class Runtail:
    """Calls to a server. Every method may raise Refused and Unreachable, and repeats what it is safe to repeat.

    Make one per process or module, and use it from any thread. It also works in processes forked after it was made.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        user: str | None = None,
        public_url: str | None = None,
        timeout: float = ASK_SECONDS,
        buffer_bytes: int = BUFFER_BYTES,
        beat_seconds: float | None = None,
        finish_seconds: float = FINISH_SECONDS,
    ) -> None:
        """
        :param url: where the server is, such as http://127.0.0.1:8000.
        :param key: an API key. To write runs it needs the scope `write`; a server in development mode wants none.
        :param user: act for this user of the key's tenant, which also needs that scope.
        :param public_url: where browsers find it, for `watch_url`; None: at `url`.
        :param timeout: seconds that a call may take, its attempts together. Not of `watch`, nor of what a run writes.
        :param buffer_bytes: with so many bytes of a run's events unsent its verbs block.
        :param beat_seconds: how often a run that writes nothing asks the server whether it was cancelled; None: a
            quarter of the lease, and 15 s at most.
        :param finish_seconds: how long the end of a run may take to be confirmed.
        """
        self.url = url.rstrip("/")
        self.user = user
        self._public_url = (public_url or url).rstrip("/")
        self._key = key
        self._buffer_bytes = buffer_bytes
        self._beat_seconds = beat_seconds
        self._finish_seconds = finish_seconds
        self._connection = Connection(url, timeout)

    def for_user(self, user: str | None) -> "Runtail":
        """The same, acting for another user. It shares this one's connections, and costs next to nothing."""
        other = copy(self)
        other.user = user
        return other

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._connection.close()

    def __enter__(self) -> "Runtail":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Runs of the server's agents.

    def start(
        self,
        agent: str,
        input: Mapping[str, Any] | None = None,
        *,
        session: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        client_run_id: str | None = None,
        on_disconnect: str | None = None,
        timeout_s: int | None = None,
        idempotency_key: str | None = None,
    ) -> str:
        """Start a run; returns its id. With an idempotency key of your own, the same call again starts no second run.

        :param on_disconnect: `cancel`: it is cancelled once nobody follows it any more.
        :param timeout_s: it fails after so many seconds.
        """
        body = _body(agent, input, session, metadata)
        body |= given(client_run_id=client_run_id, on_disconnect=on_disconnect, timeout_s=timeout_s)
        return str(self._post_run(body, idempotency_key or uuid4().hex)["run_id"])

    def read(self, run_id: str) -> dict[str, Any]:
        """The run, and its `state` as of now."""
        return self._ask("GET", _path(run_id))

    def events(self, run_id: str, since: int = 0) -> Iterator[Envelope]:
        """Every event up to now that follows `since`."""
        while True:
            query = {"since_seq": since, "limit": EVENTS_PAGE}
            page = self._ask("GET", _path(run_id, "/events"), {"Accept": "application/json"}, params=query)
            yield from page["events"]
            if not page["events"]:
                return
            since = page["next_since_seq"]

    def watch(self, run_id: str, since: int = 0, *, watch_token: str | None = None) -> Iterator[Envelope]:
        """What follows `since`, as it comes, up to the end of the run: every event once and in order.

        Lost connections and restarting servers are waited for. After a `stream.snapshot`, which stands in the place
        of events, it goes on from that one's seq; other control frames (`stream.…`) may be ignored.

        :param watch_token: of the run; no key is needed then.
        :raises Unreachable: the server was away for five minutes.
        """
        query = given(watch_token=watch_token)
        headers = {} if watch_token else self._headers()
        return Watch(self._connection, _path(run_id, "/events"), headers, query, since).envelopes()

    def cancel(self, run_id: str) -> dict[str, Any]:
        """Ask for the run's cancel; returns the run after that. On a run that has ended this changes nothing."""
        return self._ask("POST", _path(run_id, "/cancel"))

    def approve(self, run_id: str, approval_id: str, comment: str | None = None) -> dict[str, Any]:
        """Approve; returns the approval. Again, it is the same decision; after another one Refused, 409."""
        return self._decide(run_id, approval_id, "approved", comment)

    def deny(self, run_id: str, approval_id: str, comment: str | None = None) -> dict[str, Any]:
        """Deny; otherwise as `approve`."""
        return self._decide(run_id, approval_id, "denied", comment)

    def _decide(self, run_id: str, approval_id: str, decision: str, comment: str | None) -> dict[str, Any]:
        body = {"decision": decision, "comment": comment}
        return self._ask("POST", _path(run_id, f"/approvals/{quote(approval_id, safe='')}"), json=body)

    def send_input(self, run_id: str, text: str, *, idempotency_key: str | None = None) -> str:
        """Send the run a message; returns the input's id."""
        headers = {"Idempotency-Key": idempotency_key or uuid4().hex}
        return str(self._ask("POST", _path(run_id, "/input"), headers, json={"text": text})["input_id"])

    # Runs that this process writes.

    def open(
        self,
        *,
        user: str | None = None,
        session: str | None = None,
        input: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        ref: str | None = None,
    ) -> Opened:
        """Open a run for a job that is yet to begin, so that its id is known and it can be watched already.

        It waits for its writer, a day by default. With an idempotency key, the same again is the same run; that takes
        nothing from a writer that is at work. One that has ended can be watched from its beginning.

        :param user: whose run it is; None: this client's.
        :param input: shown as the run's input, which is all that becomes of it.
        :param ref: of a run that was opened before; nothing else is given then.
        """
        about = Ref.parse(ref) if ref else self._ref(user, _body(EXTERNAL, input, session, metadata), idempotency_key)
        answer = self._claim(about, {"Runtail-Writer": "later"})
        run_id, token = answer["run_id"], answer["watch_token"]
        return Opened(run_id, answer["status"], answer["session_id"], token, self.watch_url(run_id, token), str(about))

    def fail(self, ref: str, code: str = "job_failed", message: str = "The job failed.") -> None:
        """Fail a run whose job is not executed any more: for a queue's callback. One that has ended stays as it is.

        :param ref: of the run.
        :param code, message: as `Run.fail` has them.
        """
        with suppress(RunEnded), self.run(ref=ref) as run:
            run.fail(code, message)

    def watch_url(self, run_id: str, watch_token: str = "") -> str:
        """What a page gives to `new EventSource(…)`, whose `onmessage` then gets every event.

        :param watch_token: of the run. Without one the URL ends where a page that has it appends it.
        """
        return f"{self._public_url}{_path(run_id, '/events')}?named=0&watch_token={quote(watch_token, safe='')}"

    def run(
        self,
        *,
        ref: str | None = None,
        user: str | None = None,
        session: str | None = None,
        input: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        retried: Callable[[BaseException], bool] | None = None,
        lease_seconds: int | None = None,
    ) -> RunBlock:
        """`with client.run(…) as run:` writes a run; see `RunBlock` for how it ends.

        :param ref: of a run that was opened; nothing else but `retried` is given then.
        :param idempotency_key: the same again is the same run, started over by its next writer.
        :param retried: tells of an exception that ended the block whether the work will be done again, under the same
            ref or key; the run is then left open for that.
        :param lease_seconds: how long the run is kept for its next writer once this one is silent; None: as long as
            the server's settings say.
        :raises RunEnded: at the beginning of the block: that run has ended already.
        """
        about = Ref.parse(ref) if ref else self._ref(user, _body(EXTERNAL, input, session, metadata), idempotency_key)
        patience = Patience(self._finish_seconds)
        return RunBlock(lambda: self._sender(about, lease_seconds, patience), retried or never)

    def job(
        self,
        function: Callable[..., Any] | None = None,
        *,
        user: str | None = None,
        session: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        retried: Callable[[BaseException], bool] = queues.retried,
        lease_seconds: int | None = None,
    ) -> Any:
        """Make of `def report(run, …)` a job `report(…)` that writes a run: under RQ, Celery, in a thread, anywhere.

        `report(…, ref=opened.ref)` writes the run that was opened, `report(…)` a new one. What the function returns is
        the run's output; None: see `Run.output`. Under RQ and Celery, a job that is tried again goes on with the same
        run. It does its work, and returns, also where the server is away, has lost the run, or takes nothing: the log
        says so, and nothing of that is raised.

        :param user, session, metadata: of new runs.
        :param retried: as in `run`. By default: an RQ job that has tries left.
        :param lease_seconds: as in `run`; None: a job that will be tried again if its worker is lost takes one that is
            longer than its queue needs to notice that.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            def start(ref: str | None, own: str | None) -> Ref:
                if ref:
                    return Ref.parse(ref)
                return self._ref(user, _body(EXTERNAL, None, session, metadata), own and fitting_key(own))

            patience = Patience.of_jobs(self._finish_seconds)
            runs = JobRuns(
                about=start,
                claim=lambda about, lease: self._sender(about, lease_seconds or lease, patience),
                known=self._known,
                output=lambda ended: self.for_user(ended.user).read(ended.run_id)["output"],
            )
            return as_job(function, runs, retried)

        return decorate if function is None else decorate(function)

    def _ref(self, user: str | None, body: Mapping[str, Any], key: str | None) -> Ref:
        return Ref.new(user or self.user, body, key)

    def _claim(self, ref: Ref, headers: Mapping[str, str]) -> dict[str, Any]:
        return self.for_user(ref.user)._post_run(ref.body, ref.key, headers)

    def _known(self, ref: Ref) -> bool:
        query = {"client_run_id": ref.body["client_run_id"], "limit": 1}
        return bool(self.for_user(ref.user)._ask("GET", "/runs", params=query)["runs"])

    def _sender(self, ref: Ref, lease_seconds: int | None, patience: Patience) -> Sender:
        """
        :raises RunEnded: there is nothing to write any more.
        """
        answer = self._claim(ref, {"Runtail-Lease": str(lease_seconds)} if lease_seconds else {})
        if answer["writer_token"] is None:
            raise RunEnded(answer["run_id"], answer["status"], ref.user)
        lease = Lease(answer["run_id"], answer["writer_token"], answer["epoch"], answer["lease_seconds"])
        return Sender(self._connection, lease, self._buffer_bytes, self._beat_seconds, patience)

    def _post_run(self, body: Mapping[str, Any], key: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        return self._ask("POST", "/runs", {"Idempotency-Key": key, **(headers or {})}, json=body)

    def _ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, **request: Any) -> dict[str, Any]:
        return self._connection.ask(method, path, {**self._headers(), **(headers or {})}, **request)

    def _headers(self) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        return {**headers, **({"Runtail-User": self.user} if self.user else {})}


def _body(
    agent: str, input: Mapping[str, Any] | None, session: str | None, metadata: Mapping[str, Any] | None
) -> dict[str, Any]:
    return {"agent": agent, "input": dict(input or {}), **given(session_id=session, metadata=metadata)}


def _path(run_id: str, rest: str = "") -> str:
    return f"/runs/{quote(run_id, safe='')}{rest}"
