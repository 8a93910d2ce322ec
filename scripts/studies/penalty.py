"""What `kl_sampler: demonstrations` costs a step of SFT once the reference's log-probs are kept on disk."""

import logging

import bench
import bench_arms

ROWS, BATCH = 2048, bench_arms.TIME_BATCH
EPOCH = ROWS // BATCH  # optimizer steps
STEPS, WARM_UP = 4 * EPOCH, EPOCH + EPOCH // 4


def penalty(pairs: int = 20) -> dict:
    """CPU time of a step from the second epoch on, with beta > 0 over beta = 0; runs alternate in one process."""
    bench_arms.ARMS["beta_sft"] = (*bench_arms.ARMS["ours_sft"][:2], {
        **bench_arms.SFT, "beta": 0.1, "kl_sampler": "demonstrations",
    })  # fmt: skip
    rows = bench_arms.data()
    logging.getLogger("fe_posttrain").setLevel(logging.ERROR)  # each run says that its optimum is not that of F
    assert len(rows["demonstrations"]) == ROWS
    names = ["beta_sft", "ours_sft"]
    timing = {"steps": STEPS, "warm_up": WARM_UP}
    times = bench.alternate(names, pairs, lambda name: bench_arms.time_per_step(name, rows, **timing))
    found = bench.compare(*(times[name] for name in names))
    return {
        "what": penalty.__doc__,
        "ratio": found["ratio"],
        "interval": found["interval"],
        "coverage": found["coverage"],
        "pairs": found["pairs"],
        "batch": BATCH,
        "steps": timing,
        "bar": "ratio at most 1.05",
    }
