"""How processes that work for another one behave when that is stopped."""

import multiprocessing
import os
import signal
import threading


def follow_parent(*_: int) -> None:
    """In a worker: leave interrupts to the parent, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setsid()  # signals to the parent's group are not for us
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
