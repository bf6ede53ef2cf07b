"""Agents that reach for what all runs of a worker process have in common."""

import concurrent.futures
import ctypes
import faulthandler
import itertools
import multiprocessing
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import pool, shared_memory
from os import fork, kill
from signal import alarm

import gevent
import greenlet
from gevent import monkey
from misbehaving_agents import AnyInput, WayInput

from runtail import Run, agent

WAYS: dict[str, Callable[[Run], object]] = {}


def way(function: Callable[[Run], object]) -> Callable[[Run], object]:
    """One way to do harm."""
    WAYS[function.__name__] = function
    return function


@agent("harm", input=WayInput)
def harm(run: Run) -> object:
    return WAYS[run.input["way"]](run)


@agent("harm_apart", input=WayInput, isolation="process")
def harm_apart(run: Run) -> object:
    return WAYS[run.input["way"]](run)


@agent("counts", input=AnyInput)
def counts(run: Run) -> object:
    """Calls a tool, which writes who called it to the file `calls`, again and again until there is `enough`."""
    for n in itertools.count():
        if run.tool("count", _count, run.input["calls"], n, run.input["enough"]):
            break
        time.sleep(0.05)
    return {"pid": os.getpid()}


def _count(calls: str, n: int, enough: str) -> bool:
    with open(calls, "a") as file:
        file.write(f"{n} {os.getpid()}\n")
    return os.path.exists(enough)


# Forks.


@way
def forks(run: Run) -> object:
    return _child(os.fork())


@way
def forks_in_a_tool(run: Run) -> object:
    return run.tool("fork", lambda: _child(os.fork()))


@way
def forks_by_name(run: Run) -> object:
    return _child(fork())


@way
def forks_with_the_original(run: Run) -> object:
    return _child(monkey.get_original("os", "fork")())


@way
def forks_by_gevent(run: Run) -> object:
    return _child(gevent.fork())


@way
def forks_a_terminal(run: Run) -> object:
    return _child(os.forkpty()[0])


@way
def forks_by_pty(run: Run) -> object:
    return _child(pty.fork()[0])


@way
def forks_in_a_thread(run: Run) -> object:
    with concurrent.futures.ThreadPoolExecutor() as threads:
        return threads.submit(lambda: _child(os.fork())).result()


@way
def forks_in_a_native_thread(run: Run) -> object:
    return gevent.get_hub().threadpool.apply(lambda: _child(os.fork()))


@way
def forks_by_ctypes(run: Run) -> object:
    return _child(ctypes.CDLL(None).fork())


@way
def spawns_by_os(run: Run) -> object:
    return os.spawnlp(os.P_WAIT, "true", "true")


@way
def multiprocesses(run: Run) -> object:
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(2,))
    process.start()
    process.join()
    return process.exitcode


@way
def multiprocesses_by_spawning(run: Run) -> object:
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(2,))
    process.start()
    process.join()  # would block every run meanwhile
    return process.exitcode


@way
def pools_processes_by_a_server(run: Run) -> object:
    with multiprocessing.get_context("forkserver").Pool(1) as processes:
        return processes.map(abs, [-1])


@way
def pools_processes(run: Run) -> object:
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        return processes.submit(abs, -1).result(5)


@way
def becomes_another_program(run: Run) -> object:
    os.execvp("true", ["true"])


def _child(pid: int) -> int:
    """What a forked child goes on with is the point: it sleeps as the parent does, in the parent's event loop."""
    time.sleep(2)
    if pid == 0:
        os._exit(0)
    return pid


# Signals.


@way
def sets_an_alarm(run: Run) -> object:
    signal.alarm(1)
    time.sleep(2)
    return None


@way
def sets_an_alarm_in_a_tool(run: Run) -> object:
    run.tool("limit", signal.alarm, 1)
    time.sleep(2)
    return None


@way
def sets_an_alarm_in_a_native_thread(run: Run) -> object:
    gevent.get_hub().threadpool.apply(signal.alarm, (1,))
    time.sleep(2)
    return None


@way
def sets_an_alarm_by_name(run: Run) -> object:
    alarm(1)
    time.sleep(2)
    return None


@way
def sets_a_timer(run: Run) -> object:
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    time.sleep(1)
    return None


@way
def ignores_sigterm(run: Run) -> object:
    return str(signal.signal(signal.SIGTERM, signal.SIG_IGN))


@way
def handles_sigint(run: Run) -> object:
    return str(signal.signal(signal.SIGINT, signal.default_int_handler))


@way
def handles_the_end_of_children(run: Run) -> object:
    return str(signal.signal(signal.SIGCHLD, print))


@way
def sets_an_alarm_by_ctypes(run: Run) -> object:
    ctypes.CDLL(None).alarm(1)
    time.sleep(2)
    return None


@way
def handles_by_gevent(run: Run) -> object:
    return str(gevent.signal_handler(signal.SIGTERM, print))


@way
def blocks_sigterm(run: Run) -> object:
    return str(signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM}))


@way
def takes_the_wakeup(run: Run) -> object:
    return signal.set_wakeup_fd(-1)


@way
def interrupts_calls(run: Run) -> object:
    return signal.siginterrupt(signal.SIGTERM, True)


@way
def waits_for_a_signal(run: Run) -> object:
    return str(signal.sigtimedwait({signal.SIGTERM}, 1))


@way
def terminates_itself(run: Run) -> object:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(2)
    return None


@way
def hangs_itself_up_by_name(run: Run) -> object:
    kill(os.getpid(), signal.SIGHUP)
    time.sleep(2)
    return None


@way
def interrupts_itself(run: Run) -> object:
    signal.raise_signal(signal.SIGINT)
    time.sleep(2)
    return None


@way
def terminates_its_group(run: Run) -> object:
    with subprocess.Popen(["sleep", "1"]) as child:
        os.killpg(os.getpgid(child.pid), signal.SIGTERM)
    return None


@way
def terminates_a_thread(run: Run) -> object:
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    return None


@way
def terminates_by_descriptor(run: Run) -> object:
    descriptor = os.pidfd_open(os.getpid())
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
    finally:
        os.close(descriptor)  # what an agent leaves open, stays open: the soak is to see ours
    return None


@way
def interrupts_the_main_thread(run: Run) -> object:
    import _thread

    _thread.interrupt_main()
    time.sleep(2)
    return None


@way
def dumps_and_exits(run: Run) -> object:
    faulthandler.dump_traceback_later(1, exit=True)
    time.sleep(2)
    return None


@way
def limits_its_cpu(run: Run) -> object:
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
    return None


# Exits.


@way
def exits(run: Run) -> object:
    sys.exit("secret")


@way
def exits_in_a_tool(run: Run) -> object:
    return run.tool("quit", sys.exit)


@way
def exits_in_a_branch(run: Run) -> object:
    return run.parallel(lambda branch: sys.exit(), lambda branch: time.sleep(5))


@way
def exits_in_a_stream(run: Run) -> object:
    return run.stream(sys.exit() if n else "text" for n in range(2))


@way
def exits_in_a_greenlet(run: Run) -> object:
    gevent.spawn(sys.exit)
    time.sleep(5)
    return None


@way
def exits_in_a_greenlet_of_a_greenlet(run: Run) -> object:
    gevent.spawn(gevent.spawn_later, 0.1, sys.exit, 3)
    time.sleep(5)
    return None


@way
def exits_in_a_bare_thread(run: Run) -> object:
    import _thread

    _thread.start_new_thread(sys.exit, ())
    time.sleep(5)
    return None


@way
def interrupts_in_a_greenlet(run: Run) -> object:
    gevent.spawn(_interrupt)
    time.sleep(5)
    return None


@way
def interrupts_in_a_link(run: Run) -> object:
    gevent.spawn(str).link(_interrupt)
    time.sleep(5)
    return None


@way
def breaks_in_a_greenlet(run: Run) -> object:
    gevent.spawn(_break)
    time.sleep(5)
    return None


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _break() -> None:
    raise SystemError("An extension module is broken.")


# What goes on working.


@way
def calls_back_from_the_loop(run: Run) -> object:
    """Nobody knows whose the callback is: it is told in the log."""
    gevent.get_hub().loop.run_callback(sys.exit)
    time.sleep(0.2)
    return "went on"


@way
def exits_in_a_raw_greenlet(run: Run) -> object:
    gevent.spawn_raw(sys.exit)
    time.sleep(0.2)
    return "went on"


@way
def exits_in_a_thread(run: Run) -> object:
    """As everywhere in Python, that ends the thread and nothing else."""
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()
    return "went on"


@way
def kills_a_greenlet(run: Run) -> object:
    child = gevent.spawn(time.sleep, 60)
    time.sleep(0)
    child.kill()
    greenlet.greenlet(str).switch()
    return "went on"


@way
def catches_the_refusal(run: Run) -> object:
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except ValueError:
        return "went on"  # what libraries expect where they are not in the main thread
    return None


@way
def starts_programs(run: Run) -> object:
    assert subprocess.run(["cat"], input=b"ok", capture_output=True).stdout == b"ok"
    assert subprocess.check_output("echo shell", shell=True) == b"shell\n"
    assert os.system("true") == 0
    with os.popen("echo popen") as pipe:
        assert pipe.read() == "popen\n"
    assert os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)[1] == 0
    assert run.exec(["echo", "exec"])["stdout"] == "exec\n"
    with subprocess.Popen(["sleep", "60"]) as child:
        child.terminate()
    assert child.returncode == -signal.SIGTERM
    return "went on"


@way
def shares_memory(run: Run) -> object:
    memory = shared_memory.SharedMemory(create=True, size=16)
    memory.close()
    memory.unlink()
    with pool.ThreadPool(2) as threads:
        assert threads.map(abs, [-1, -2]) == [1, 2]
    return "went on"


@way
def leaves_programs_behind(run: Run) -> object:
    """Programs that nobody waits for: of the agent, of a tool, of a shell, and with a session of its own."""
    mark = run.input["mark"]
    subprocess.Popen(["sleep", mark])
    run.tool("start", lambda: subprocess.Popen(["sleep", mark]).pid)
    subprocess.Popen(f"sleep {mark} & sleep {mark}; true", shell=True)
    subprocess.Popen(["sleep", mark], start_new_session=True)
    os.posix_spawn("/bin/sleep", ["sleep", mark], os.environ)
    run.emit("custom.started", {})
    time.sleep(run.input["seconds"])
    return "went on"


@way
def starts_one_program(run: Run) -> object:
    return subprocess.run(["sleep", run.input["mark"]]).returncode


@way
def leaves_daemons_behind(run: Run) -> object:
    """As daemons are made: by a fork in a session of its own, whose parent is gone."""
    mark = run.input["mark"]
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            os.execvp("sleep", ["sleep", mark])
        os._exit(0)
    os.waitpid(child, 0)
    subprocess.Popen(["sleep", mark], start_new_session=True)
    run.emit("custom.started", {})
    time.sleep(run.input["seconds"])
    return "went on"


@way
def leaves_threads_behind(run: Run) -> object:
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(20,), daemon=True).start()
    gevent.spawn(time.sleep, 20)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        threads.submit(time.sleep, 0.01)
        threads.submit(time.sleep, run.input["seconds"])
    return "went on"


@way
def prepares_a_program(run: Run) -> object:
    """What runs between fork and exec may sleep: in an event loop of its own, not in that of the parent."""
    return subprocess.run(["echo", "went on"], preexec_fn=lambda: time.sleep(1), stdout=-1).stdout.decode().strip()


# Beside them: what any team's agent does.


@agent("honest", input=AnyInput)
def honest(run: Run) -> object:
    """Takes about `seconds`: tools, of which each call is a line in the file `calls`, and a text between them."""
    turns = 10
    for turn in range(turns):
        with run.step(f"Turn {turn}"):
            run.tool("look_up", _look_up, run.input["calls"], turn)
            run.stream(_words(run.input["seconds"] / turns))
    return {"turns": turns}


def _look_up(calls: str, turn: int) -> int:
    with open(calls, "a") as file:
        file.write(f"{turn}\n")
    return turn


def _words(seconds: float) -> Iterator[str]:
    for n in range(10):
        time.sleep(seconds / 10)
        yield f"word {n} "
