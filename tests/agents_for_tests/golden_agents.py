"""An agent that uses every verb of a run, with a wait between any two groups of them.

Its journals, as versions of the project have left them, stand in tests/golden/journals: what it does may not change.
"""

from collections.abc import Iterator

from durable_agents import Stage
from misbehaving_agents import AnyInput

from runtail import Run, ToolError, agent


@agent("every_verb", input=AnyInput)
def every_verb(run: Run) -> object:
    """Everything once; then a wait, and what depends on it."""
    stage = Stage(run)
    found = [_plans_and_tools(run, stage), _texts(run, stage)]
    with run.step("Ask"), run.message() as message:
        message.write("I ask. ")
        approval = run.approve("Send it?", expires_in=1e9, requires="owner")
        message.write("They answered.")
    found.append([approval.decision, approval.by, approval.comment])
    found.append(run.tool("asks", _asks, run, stage, label="Asking in a tool"))
    heard = run.inputs(wait=True)
    found += [heard, run.tool("hears", stage.effect, "hears", len(heard)), run.inputs()]
    slept_from = run.now()
    run.sleep(61.0)
    found.append(run.now() >= slept_from)
    found += run.parallel(lambda one: _branch(one, stage, "left"), lambda one: _branch(one, stage, "right"))
    run.stream(["The ", "end."])
    return {"found": found, "number": run.random()}


def _plans_and_tools(run: Run, stage: Stage) -> object:
    first, _ = run.plan(["Gather", "Write"])
    with run.step("Gather") as step:
        step.progress(0.5, "half")
        rows = run.tool("rows", stage.rows, "rows", 2, label="Reading rows", summary={"count": 2})
        run.progress(1)
    with run.step("Once more", id=first, timeout_s=1e6):
        inner = run.tool("outer", _outer, run, stage)
    errors = [_failing(run, stage, retryable) for retryable in (True, False)]
    ran = run.exec(["/bin/sh", "-c", "cat; echo ' and out'"], input="in", timeout_s=60.0, label="A shell")
    try:
        with run.step("Fails"):
            raise ToolError("no_luck", "It has no luck.")
    except ToolError as error:
        errors.append(error.code)
    run.plan(["Gather", "Ask", "Write"])
    return {"rows": rows, "inner": inner, "errors": errors, "ran": ran}


def _outer(run: Run, stage: Stage) -> str:
    run.progress(0.25, "a quarter")
    stage.effect("outer", run.tool_call_id, run.idempotency_key)
    run.emit("custom.inside", {"n": 1})

    def inner(query: str, *, token: str) -> str:
        return stage.effect("inner", query, token)

    found: str = run.tool("inner", inner, "everything", token="hidden")
    return found


def _failing(run: Run, stage: Stage, retryable: bool) -> str:
    def fail() -> None:
        stage.effect("failing", run.idempotency_key)
        raise ToolError("busy", "Not now.", retryable=retryable)

    try:
        run.tool("failing", fail, retries=2, backoff=0.01)
    except ToolError as error:
        return error.code
    return "none"


def _texts(run: Run, stage: Stage) -> object:
    run.source("A book", url="https://example.com/book", snippet="It says so.")
    run.check("tone", True, score=0.75, note="fine")
    run.usage(input_tokens=3, output_tokens=4, cost=0.5)
    run.emit("custom.note", {"text": "nul \0, half a pair \ud83d", "n": 1})
    began, number = run.now(), run.random()
    with run.message("system") as message:
        message.write("a whole 🎈 ")
        message.write("and the rest")
    with run.message():
        pass
    text = run.stream(_words(run, stage))
    try:
        run.stream(_broken(stage))
    except ToolError as error:
        run.emit("custom.broken", {"code": error.code})
    run.sleep(0.01)
    return [began.isoformat(), number, text, run.stream(["", ""])]


def _words(run: Run, stage: Stage) -> Iterator[str]:
    stage.effect("streamed")
    for n in range(3):
        run.progress(n / 3)
        yield f"word {n}, "
    run.tool("while_streaming", stage.effect, "while_streaming")


def _broken(stage: Stage) -> Iterator[str]:
    stage.effect("broken")
    yield "half a sen"
    raise ConnectionError("the provider is gone")


def _asks(run: Run, stage: Stage) -> str:
    stage.effect("asks")
    return run.approve("Within a tool?").decision


def _branch(run: Run, stage: Stage, side: str) -> object:
    run.source(side)
    before: str = run.tool(f"{side}_before", stage.effect, f"{side}_before")
    deeper = run.parallel(lambda one: one.tool("deep", stage.effect, f"{side}_deep"), lambda one: one.random())
    return [before, deeper[0], run.approve(f"{side}?").decision, run.tool(side, stage.effect, side)]
