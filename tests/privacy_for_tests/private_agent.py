"""An agent that calls tools and a program with secrets, waits, and makes the same calls again."""

import os

from marshmallow import INCLUDE, Schema

from runtail import Run, agent


class PrivateInput(Schema):
    """A secret."""

    class Meta:
        unknown = INCLUDE


def _login(user: str, password: str = "", url: str = "") -> str:
    return f"token={password}; {url}"


@agent("private", input=PrivateInput)
def private(run: Run) -> object:
    """Use a secret in every way."""
    secret = run.input["secret"]
    first = run.tool("login", _login, "ann", password=secret, url=f"redis://:{secret}@h/0", summary={"pwd": secret})
    run.tool("login", _login, "ann", secret, summary={"line": f"login --password={secret}"})
    env = {"PLAIN": secret, "PATH": os.environ["PATH"]}
    run.exec(["echo", f"https://ann:{secret}@a.example/?token={secret}", "--password", secret], env=env)
    program = run.exec(["env"])
    run.inputs(wait=True)
    return {"same": secret in first, "leaked": secret in program["stdout"]}
