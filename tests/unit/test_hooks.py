"""logging and threading do nothing in a child, and are otherwise as they always are."""

from __future__ import annotations

import pytest

from tests.support.python import printed_by

pytestmark = pytest.mark.hybrid_only

# Which files a child runs a function of before fork() returns there.
FORK = """
import os, sys
called = set()
sys.setprofile(lambda frame, event, argument: called.add(frame.f_code.co_filename))
pid = os.fork()
sys.setprofile(None)
if pid == 0:
    print(*sorted({os.path.basename(name) for name in called} & {"threading.py", "__init__.py"}))
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
"""
IMPORT = "from vsock_proxy.process.hooks import import_without_hooks\nimport_without_hooks()\n"


def _run(code: str) -> str:
    return printed_by(code, options=["-S"]).strip()


def test_a_child_runs_nothing_of_logging_and_threading() -> None:
    assert _run("import logging" + FORK) == "__init__.py threading.py"
    assert _run(IMPORT + "import logging" + FORK) == ""


def test_who_imports_them_before_keeps_their_hooks() -> None:
    assert _run("import logging\n" + IMPORT + FORK) == "__init__.py threading.py"


def test_other_modules_can_register_for_forks_afterwards() -> None:
    assert _run(IMPORT + "import os\nos.register_at_fork(after_in_child=print)\nprint(1)") == "1"


@pytest.mark.parametrize("lacking", ["import os; del os.register_at_fork\n", ""])
def test_a_child_can_log_and_start_threads(lacking: str) -> None:
    said = _run(
        lacking
        + IMPORT
        + "import logging, os, sys\n"
        + "from threading import Thread, current_thread, main_thread\n"
        + "logging.basicConfig(format='%(threadName)s: %(message)s', stream=sys.stdout)\n"
        + "if not os.fork():\n"
        + "    threads = [Thread(target=logging.error, args=['x'], name='t') for _ in range(2)]\n"
        + "    [thread.start() for thread in threads]\n"
        + "    [thread.join() for thread in threads]\n"
        + "    logging.error('%s', current_thread() is main_thread())\n"
        + "else:\n"
        + "    os.wait()\n"
    )
    assert said == "t: x\nt: x\nMainThread: True"
