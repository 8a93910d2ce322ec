"""What child processes of the cache tests run; apart from the tests, so that a child imports little."""

import os
import signal

from fe_posttrain.tasks import pretraining
from fe_posttrain.tasks.pretraining_run import PretrainSettings

TINY = PretrainSettings(steps=3, batch_size=8, hidden_size=8, intermediate_size=8, layers=1, heads=2)


def build_together(cache, barrier, folders):
    """Build at the same moment as the others, and report the folder."""
    barrier.wait()
    folders.put(pretraining.reference_model(cache, settings=TINY))


def build_and_die(cache):
    """Be killed when the staging folder exists and the model is about to be trained."""
    pretraining.pretrain = lambda seed, settings: os.kill(os.getpid(), signal.SIGKILL)
    pretraining.reference_model(cache, settings=TINY)
