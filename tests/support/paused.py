"""cxrnode whose main thread is held up for 2 ms whenever a future said "not done", as a loaded machine does by itself.

python -m tests.support.paused run-batch ARCHIVE --out DIR
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_PAUSE_S = 0.002


def _held_up(asked: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def done(self: Future[Any]) -> bool:
        answer = asked(self)
        if not answer and threading.current_thread() is threading.main_thread():
            time.sleep(_PAUSE_S)
        return answer

    return done


if __name__ == "__main__":
    setattr(Future, "done", _held_up(Future.done))  # noqa: B010 (mypy takes no other method for it)
    from cxrnode.cli.main import main

    sys.argv[0] = "cxrnode"
    main()
