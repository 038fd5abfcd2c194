"""Start the reference engine: rank 0 with HTTP or, with `--rank K`, one of the ranks that rank 0 starts.

Imports are late so that ranks load in parallel: rank 0 first starts the other ranks, then answers HTTP, and imports torch
(most of the start-up time) last, in the model's thread.
"""

import gc
import logging
import os
import sys

from demo.engine.options import Options, parse_options
from demo.engine.startup import StartError, timed_phase


def _run_rank(options: Options) -> int:
    from demo.engine.rank_processes import die_with_rank_0

    die_with_rank_0()
    with timed_phase("import torch"):
        from demo.engine.worker import Worker
    worker = Worker(options, rank=options.rank)
    worker.load()
    worker.connect(port=options.dist_port, listener=None)
    gc.freeze()
    gc.enable()
    worker.follow_rank_0()
    return 0


def _main() -> int:
    gc.disable()  # during the imports the collector would walk torch's objects again and again (0.2 s of 1.1 s)
    options = parse_options()
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s.%(msecs)03d rank={options.rank} %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))  # torch reads it once, when it is imported
    if options.rank:
        return _run_rank(options)
    from demo.engine.server import serve

    return serve(options, sys.argv[1:])


if __name__ == "__main__":
    try:
        code = _main()
    except StartError as error:
        logging.error("cannot start: %s", error)
        code = 1
    except Exception:
        logging.exception("the reference engine failed")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # an ordinary exit would wait for ever for a thread that hangs in a collective
