"""torchrun whose ranks are forked from it once it has imported what they need: the imports are most of a short run's
time. `forked.Forked` does the same where no other program has to start it."""

import importlib
import sys

from forked import IMPORTED, quicken_rendezvous
from torch.distributed.run import main

if __name__ == "__main__":
    for name in IMPORTED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:  # DALI may not be installed
            continue
    quicken_rendezvous()
    main(["--run_path", "--start_method=fork", *sys.argv[1:]])
