"""Run a function in a forked child: what it packs and caches goes with it, and so does a crash."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from typing import Any


class ChildError(RuntimeError):
    """The child ended without an answer."""


def in_child(function: Callable[[], Any], quiet: bool = False) -> Any:
    """``function``'s result, which must be picklable. What it raises is raised here.

    ``quiet`` swallows what it says on stderr, such as the last words of an abort.

    Forking is safe only while this process has started no threads: none of its calls may have used
    more than one.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        if quiet:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        _answer(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if not said:
        raise ChildError(_ending(status))
    result, error = pickle.loads(said)
    if error is not None:
        raise RuntimeError(error)
    return result


def _answer(function: Callable[[], Any], writer: int) -> None:
    answer: tuple[Any, str | None]
    try:
        answer = function(), None
    except BaseException as error:  # whatever it is, the child must not return into its caller
        answer = None, f"{type(error).__name__}: {error}"
    with os.fdopen(writer, "wb") as pipe:
        pickle.dump(answer, pipe)
    os._exit(0)  # no clean-up: it is the parent's


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with status {os.waitstatus_to_exitcode(status)}"
