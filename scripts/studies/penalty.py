"""What `kl_sampler: demonstrations` costs a step of SFT once the reference's log-probs are kept on disk."""

import logging

from bench_arms import OURS, SFT, timed
from bench_cells import Testbed
from bench_pairs import alternate, ratio

ROWS, BATCH = 2048, 64
EPOCH = ROWS // BATCH  # optimizer steps
WORK = Testbed(group=None, rows=ROWS, batch=BATCH, steps=4 * EPOCH, warm_up=EPOCH + EPOCH // 4)
ARMS = {"beta": SFT | {"beta": 0.1, "kl_sampler": "demonstrations"}, "no beta": SFT}


def penalty(pairs: int = 20) -> dict:
    """CPU time of a step from the second epoch on, with beta > 0 over beta = 0; runs alternate in one process."""
    logging.getLogger("fe_posttrain").setLevel(logging.ERROR)  # each run says that its optimum is not that of F
    timing = {"steps": WORK.steps, "warm_up": WORK.warm_up}
    times = alternate(list(ARMS), pairs, lambda name, _: timed(WORK.build(OURS, **ARMS[name]), **timing)["step"])
    return {
        "what": penalty.__doc__,
        **ratio(times["beta"], times["no beta"]),
        "batch": BATCH,
        "steps": timing,
        "bar": "ratio at most 1.05",
    }
