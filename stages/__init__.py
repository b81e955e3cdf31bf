"""The pipeline: one module a stage, each runnable as `python -m stages.<name>`."""

import os

if "MED_R1_PRELOADED" in os.environ:
    # here, since what follows are a stage's imports, and a process that hands over needs none
    from stages.core.distributed.handover import hand_over

    hand_over()
