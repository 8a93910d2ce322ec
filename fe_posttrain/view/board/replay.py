"""A wandb run made from a run folder, after the fact."""

from dataclasses import dataclass
from pathlib import Path

from fe_posttrain.view.board.mirror import Board, begin, offline_runs, put_aside
from fe_posttrain.view.board.server import answers, logged_in, server
from fe_posttrain.view.reading import RunData


class NotOnline(Exception):
    """There is no server that takes the run; the message says what to do."""


@dataclass(frozen=True)
class Replayed:
    """What was made: rows and events of the run folder, the run's id, and where it is (a folder or an address)."""

    rows: int
    events: int
    id: str
    place: str


def replay(folder: Path, *, online: bool = False) -> Replayed:
    """Log a run folder as one whole wandb run under the id that the run has, or a new one.

    Raises:
        ValueError: `folder` holds no run.
        NotOnline: `online`, and there is no login or the server does not answer.
    """
    run = RunData(folder)
    if online:
        url = server()
        if not logged_in():
            raise NotOnline("--online: no login on this machine; run wandb login, or leave it out and wandb sync later")
        if not answers(url):
            raise NotOnline(f"--online: {url} does not answer; leave it out and wandb sync later")
    earlier = offline_runs(folder)
    name = earlier[-1].name.rsplit("-", 1)[1] if earlier else None
    made = begin(folder, run.recipe, "online" if online else "offline", name)
    board = Board(made)
    board.replay(run)
    ended = run.events_named("end")
    board.finish(int(not ended or ended[-1]["status"] == "failed"))
    place = Path(made.dir).parent
    put_aside(path for path in offline_runs(folder) if path != place)
    return Replayed(len(run.metrics), len(run.events), made.id, made.url if online else str(place))
