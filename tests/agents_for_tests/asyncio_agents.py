"""Agents that use asyncio, each in one way: alone, as a library's `run_sync` does, and with the calls of a run."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import gevent
from misbehaving_agents import AnyInput, WayInput

from runtail import Run, agent

WAYS: dict[str, Callable[[Run], object]] = {}


def way(function: Callable[[Run], object]) -> Callable[[Run], object]:
    """One way to use asyncio."""
    WAYS[function.__name__] = function
    return function


@agent("in_a_loop", input=AnyInput)
def in_a_loop(run: Run) -> object:
    return WAYS[run.input["way"]](run)


@agent("in_a_loop_apart", input=WayInput, isolation="process")
def in_a_loop_apart(run: Run) -> object:
    return [WAYS[run.input["way"]](run), asyncio.Task.__module__]


@way
def sleeps(run: Run) -> object:
    """Without a loop: what those with one are compared with."""
    time.sleep(1)
    return "done"


@way
def runs(run: Run) -> object:
    run.emit("custom.begins", {})
    asyncio.run(asyncio.sleep(1))
    return "done"


@way
def runs_in_a_tool(run: Run) -> object:
    return run.tool("ask", lambda: asyncio.run(asyncio.sleep(1, "done")))


@way
def runs_sync(run: Run) -> object:
    """What libraries do in their `run_sync`; the loop stays open, and is used again."""
    for _ in range(2):
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            loop = asyncio.new_event_loop()
            asyncio.set_event_loop(loop)
        loop.run_until_complete(asyncio.sleep(0.5))
    loop.close()
    return "done"


@way
def makes_a_loop(run: Run) -> object:
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.sleep(1, "done"))
    finally:
        loop.close()


@way
def groups(run: Run) -> object:
    return asyncio.run(_grouped())


async def _grouped() -> str:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(asyncio.sleep(0.3, n)) for n in range(3)]
    assert [task.result() for task in tasks] == [0, 1, 2]
    try:
        async with asyncio.timeout(0.1):
            await asyncio.sleep(30)
    except TimeoutError:
        pass
    assert await asyncio.to_thread(lambda: time.sleep(0.1) or "thread") == "thread"
    current = asyncio.current_task()
    assert current is not None
    assert current.get_loop() is asyncio.get_running_loop()
    assert [n async for n in _numbers()] == [0, 1, 2]
    assert await asyncio.gather(asyncio.sleep(0.1, "a"), asyncio.wait_for(asyncio.sleep(0.1, "b"), 5)) == ["a", "b"]
    return "done"


async def _numbers() -> AsyncIterator[int]:
    for n in range(3):
        await asyncio.sleep(0.01)
        yield n


@way
def talks(run: Run) -> object:
    """It ends only if as many as are asked for talk at the same time."""
    _talking.add(run.id)
    return asyncio.run(_talked(run.input["together"]))


_talking: set[str] = set()


async def _talked(together: int) -> str:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection("localhost", server.sockets[0].getsockname()[1])
        while len(_talking) < together:
            await asyncio.sleep(0.01)
        writer.write(b"done\n")
        line = await reader.readline()
        writer.close()
    program = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    output, _ = await program.communicate(line)
    assert program.returncode == 0
    return output.decode().strip()


@way
def blocks_in_a_coroutine(run: Run) -> object:
    """A synchronous wait in a coroutine lets other runs go on, in the middle of this one's task."""

    async def ask() -> str:
        time.sleep(0.5)
        result: str = run.tool("ask", lambda: time.sleep(0.2) or "done")
        assert asyncio.current_task() is not None
        return result

    return asyncio.run(ask())


@way
def asks_in_a_coroutine(run: Run) -> object:
    async def ask() -> str:
        await asyncio.sleep(0.01)
        return run.approve("Go on?").decision

    return asyncio.run(ask())


@way
def never_returns(run: Run) -> object:
    async def wait() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            run.input["cleaned"] = True

    return asyncio.run(wait())


@way
def exits_in_a_task(run: Run) -> object:
    async def leave() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(_leave())
            await asyncio.sleep(30)

    return asyncio.run(leave())


async def _leave() -> None:
    raise SystemExit


@way
def handles_signals(run: Run) -> object:
    async def handle() -> None:
        asyncio.get_running_loop().add_signal_handler(15, print)

    return asyncio.run(handle())


@way
def changes_the_policy(run: Run) -> object:
    asyncio.set_event_loop_policy(asyncio.DefaultEventLoopPolicy())
    return "done"


@way
def nests(run: Run) -> object:
    """A loop in a loop is refused, as everywhere."""

    async def nest() -> str:
        inner = asyncio.sleep(0)
        try:
            asyncio.run(inner)
        except RuntimeError:
            return "done"
        finally:
            inner.close()
        return "nested"

    return asyncio.run(nest())


@way
def looks_around(run: Run) -> object:
    """A synchronous neighbour: the loops of others are not to be seen, wherever it looks from."""
    until = time.monotonic() + 2
    while time.monotonic() < until:
        seen: list[Any] = [asyncio._get_running_loop(), gevent.spawn(asyncio._get_running_loop).get()]
        try:
            seen.append(asyncio.current_task())
        except RuntimeError:
            seen.append(None)
        if seen != [None, None, None]:
            return str(seen)
        time.sleep(0.01)
    return "done"
