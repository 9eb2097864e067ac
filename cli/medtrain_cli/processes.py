"""Several processes of one command on this machine: started by torch's elastic agent, and how each of them ends."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from typing import NoReturn


def leave(exit_code: int) -> NoReturn:
    """End a process that is one of several, now.

    Gloo's threads outlive the training, and one that lets go of a Python object while the interpreter takes itself down
    aborts the process: a finished run would now and then count as failed.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def launch(processes: int, arguments: list[str]) -> int:
    """Run `medtrain ARGUMENTS` in several processes on this machine; the exit code of the first that failed."""
    import uuid

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "medtrain", *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode) if failure.exitcode > 0 else 1
    except SignalException as error:
        return 130 if error.sigval == signal.SIGINT else 75
    return 0
