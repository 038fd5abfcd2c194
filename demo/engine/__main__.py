"""Start the reference engine: rank 0 with HTTP, or, with `--rank K`, one of the ranks that rank 0 starts.

Imports are late and in the order that lets ranks load in parallel: the ranks are started first, HTTP answers next, torch
(most of the start-up) comes last and in the model's thread.
"""

import gc
import logging
import os
import sys
import time

from demo.engine.options import Options, StartError, parse_options


def _run_rank(options: Options) -> int:
    from demo.engine.ranks import die_with_parent
    from demo.engine.server import log_phase

    die_with_parent()
    began = time.monotonic()
    from demo.engine.worker import Worker

    log_phase("import torch", time.monotonic() - began)
    worker = Worker(options, rank=options.rank, phase=log_phase)
    worker.load()
    worker.connect(port=options.dist_port, listener=None)
    gc.freeze()
    gc.enable()
    worker.follow()
    return 0


def _main() -> int:
    gc.disable()  # until all is imported: the collector would walk torch's objects again and again (0.2 s of 1.1 s)
    options = parse_options()
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s.%(msecs)03d rank={options.rank} %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
        stream=sys.stderr,
    )
    # before torch is imported: its thread pools read them once
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    if options.save_weights is not None:
        from demo.engine import weights

        count = weights.save(options, options.save_weights)
        print(f"{count} parameters are in {options.save_weights}")
        return 0
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
        logging.exception("the reference engine ended")
        code = 1
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # a thread that hangs in a collective would hold an ordinary exit for ever
