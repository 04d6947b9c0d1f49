"""Plant a fault in a formula, in a fresh process, and see whether its claim's tests notice."""

from __future__ import annotations

import ast
import importlib
import inspect
import multiprocessing
import textwrap
from collections.abc import Callable, Sequence

from fop_theory.ledger import Mutant

# A forkserver imports what the tests share once; each mutant then costs a fork, not an import.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["pytest", "hypothesis.extra.numpy", "numdifftools", "scipy.integrate", "fop_theory.ledger", "tests.helpers"]
)
TIMEOUT = 600  # many times what one takes: a busy machine must not look like a survivor


def resolve(dotted: str) -> Callable:
    """The function behind `package.module.function` or `package.module.Class.method`."""
    parts = dotted.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for name in parts[cut:]:
            found = getattr(found, name)
        return found
    raise ValueError(f"in: nothing is called {dotted}")


def mutated_source(function: Callable, replace: str, by: str) -> str:
    """The function's source with `replace` turned into `by`, outside its docstring.

    Raises:
        ValueError: If `replace` does not stand there exactly once.
    """
    source = textwrap.dedent(inspect.getsource(function))
    body = ast.parse(source).body[0].body
    first = body[1] if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) else body[0]
    lines = source.splitlines(keepends=True)
    head, code = "".join(lines[: first.lineno - 1]), "".join(lines[first.lineno - 1 :])
    if code.count(replace) != 1:
        raise ValueError(
            f"replace: {replace!r} stands {code.count(replace)} times in {function.__qualname__}, not once"
        )
    return head + code.replace(replace, by)


def plant(mutant: Mutant) -> None:
    """Swap the function's code in this process; whoever imported it by name sees the change."""
    function = resolve(mutant.target)
    source = mutated_source(function, mutant.replace, mutant.by)
    namespace: dict = {}
    exec(compile(source, f"<mutant of {mutant.target}>", "exec"), function.__globals__, namespace)
    function.__code__ = namespace[function.__name__].__code__


class _FirstFailure:
    def __init__(self) -> None:
        self.test, self.how = "", "all tests passed"

    def pytest_runtest_makereport(self, item, call) -> None:
        if call.excinfo is not None and not self.test:
            self.test, self.how = item.nodeid, call.excinfo.type.__name__
            if call.when == "call" and issubclass(call.excinfo.type, AssertionError):
                self.how = "AssertionError"


def _try(mutant: Mutant, tests: Sequence[str], root: str, pipe) -> None:
    import contextlib
    import gc
    import io
    import os

    import pytest

    gc.freeze()  # pytest collects garbage when it ends; what was there before the fork is none
    os.chdir(root)
    os.environ["FOP_HYPOTHESIS"] = "mutant"
    recorder = _FirstFailure()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        plant(mutant)
        code = pytest.main(
            [
                *tests,
                "-x",
                "-q",
                "--tb=no",
                "-p",
                "no:cacheprovider",
                "-p",
                "no:xdist",
                "--no-header",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
            ],
            plugins=[recorder],
        )
    if not recorder.test and code != pytest.ExitCode.OK:
        recorder.how = f"pytest ended with {code.name}"  # no test ran: that's no survivor's alibi
    pipe.send((recorder.test, recorder.how))


def try_mutant(mutant: Mutant, tests: Sequence[str], root: str) -> tuple[bool, str, str]:
    """Run `tests` against the mutant in a process of its own.

    Returns:
        Whether a test failed by an assertion, how the first failure came about, and that test's id.
        A mutant that merely crashes its tests counts as alive: it proves nothing about the formula.
    """
    receiver, sender = _context.Pipe(duplex=False)
    child = _context.Process(target=_try, args=(mutant, list(tests), root, sender))
    child.start()
    sender.close()
    try:
        test, how = receiver.recv() if receiver.poll(TIMEOUT) else ("", f"no answer in {TIMEOUT} s")
    except EOFError:
        test, how = "", "the process died"
    child.kill()
    child.join()
    return how == "AssertionError", how, test
