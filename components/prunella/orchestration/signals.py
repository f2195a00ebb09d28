"""SIGTERM to `prunella run` means what Ctrl-C means: finish the step, save, end, say how to go on.

Airflow takes SIGTERM for itself at the start of every task that it runs in this process, and then ignores it; so every step
of an unattended run takes it back.
"""

import signal
import threading


def take_sigterm_as_interrupt() -> None:
    """Raise KeyboardInterrupt on SIGTERM from now on. Only the main thread can; elsewhere nothing is changed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
