"""The panel, the plain lines and the ending: what a person reads, in every width; the terminal is left as it was."""

import io
import logging
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console
from screen import Screen
from test_support_table import a_report

from fe_posttrain.view.terminal import ending
from fe_posttrain.view.terminal.callback import TerminalCallback
from fe_posttrain.view.terminal.panel import Panel, blocks
from fe_posttrain.view.terminal.progress import Curve, Progress
from fe_posttrain.view.text import compact, duration, number, probability, sparkline

ROW = {
    "free_energy/total": -0.9406,
    "free_energy/optimum": -0.9512,
    "free_energy/gap": 0.0106,
    "free_energy/reward": -1.0,
    "free_energy/kl": 1.1876,
    "free_energy/beta": 0.05,
    "reward": 1.0,
    "rewards/close/mean": 0.25,
    "rewards/short/mean": 0.75,
    "completions/mean_length": 6.25,
}
WATCHED = {"p(tail)": "testbed/p/tail"}


@pytest.fixture(autouse=True)
def nobody_is_ci(monkeypatch):
    for name in ("CI", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


class Run:
    """A run as a trainer would play it to the callback, on a terminal or elsewhere."""

    def __init__(self, folder, *, terminal=True, steps=40, width=80, height=30):
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=width, height=height)
        self.callback = TerminalCallback(self.console, WATCHED)
        self.args = SimpleNamespace(output_dir=str(folder))
        self.state = SimpleNamespace(global_step=0, max_steps=steps, is_world_process_zero=True)

    def __enter__(self):
        self.callback.on_train_begin(self.args, self.state, None)
        return self

    def __exit__(self, *_):
        self.callback.close()

    def steps(self, count, **logs):
        for _ in range(count):
            self.callback.on_step_begin(self.args, self.state, None)
            self.state.global_step += 1
            self.callback.on_step_end(self.args, self.state, None)
            self.callback.on_log(self.args, self.state, None, logs=ROW | logs)

    def tell(self, event, **content):
        self.callback.on_event(self.args, self.state, None, event=event, content=content)

    @property
    def screen(self) -> Screen:
        return Screen(self.file.getvalue())


def drawn(seen: Progress, *, width=80, watched=None, report="", now=0.0, encoding="utf-8") -> list[str]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    panel = Panel(seen, "runs/mine", clock=lambda: now)
    panel.body = blocks(seen, watched or {}, report)
    Console(file=file, width=width, height=40).print(panel)
    file.seek(0)
    return file.read().splitlines()


def a_progress(**logs) -> Progress:
    """30 of 100 steps of .1 s; a probe of 10 s after step 20."""
    seen, now = Progress(0, 100, 0.0), 0.0
    for step in range(1, 31):
        seen.begin_step(now)
        now += 0.1 + 10 * (step == 20)
        seen.step = step
        seen.log(step, ROW | {"free_energy/total": -step / 30, "num_tokens": 500.0 * step} | logs)
    seen.begin_step(now)
    return seen


def test_pace_and_speed_leave_pauses_out_and_the_time_left_counts_them_in():
    """Left: 70 steps of .1 s, and pauses as so far, 10 s in 30 steps."""
    seen = a_progress()
    assert seen.pace == pytest.approx(0.1)
    assert seen.left == pytest.approx(70 * (0.1 + 10 / 30))
    assert seen.tokens_per_second == pytest.approx(5000)
    assert Progress(0, 100, 0.0).left is None and Progress(0, 100, 0.0).tokens_per_second is None


def test_a_curve_keeps_its_ends_and_means_however_long():
    curve = Curve(most=8)
    for i in range(1024):
        curve.add(float(i))
    assert 4 <= len(curve.points) < 8
    size = 1024 // len(curve.points)
    assert curve.points == [size * i + (size - 1) / 2 for i in range(len(curve.points))]


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (number(-0.00001), "0.000"),
        (number(27.90058), "27.901"),
        (number(123456.0), "1.235e+05"),
        (probability(0.9996), "0.999"),
        (probability(1.0), "1.000"),
        (probability(6.6e-11), "7e-11"),
        (probability(0.0), "0.000"),
        (compact(949.6), "950"),
        (compact(999.9), "1.0k"),
        (compact(4120), "4.1k"),
        (compact(9960), "10k"),
        (compact(3.4e6), "3.4M"),
        (duration(7.4), "0:07"),
        (duration(3723), "1:02:03"),
        (duration(2 * 86400 + 4 * 3600 + 59), "2d 04:00"),
        (sparkline([0.0, 1.0, 2.0, 3.0], 4), "▁▃▆█"),
        (sparkline([0.0, 0.0, 7.0, 7.0], 2), "▁█"),
        (sparkline([3.0, 3.0], 9), "▁▁"),
        (sparkline([], 9), ""),
    ],
)
def test_numbers_as_a_person_reads_them(shown, wanted):
    assert shown == wanted


def test_the_panel_says_where_the_run_is():
    seen = a_progress()
    seen.tell(25, "probe", {"report": a_report()})
    lines = drawn(seen, watched={"p(tail)": 0.0321}, report="runs/mine/report.html", now=13.0)
    assert lines[0].startswith("── runs/mine ──") and len(lines[0]) == 80
    assert lines[1].startswith(" step     30/100 ━━━━━━") and lines[1].endswith(
        "0:13 elapsed, 0:30 left   5.0k tokens/s"
    )
    assert lines[2].startswith(" F        -1.000   F* -0.951   gap 0.011   █")
    assert lines[2].endswith("▁") and "▁█" not in lines[2]  # F falls all the time
    assert lines[3] == " terms    reward -1.000   KL 1.188 nats/sequence   beta 0.05"
    assert lines[4] == " reward   1.000   close 0.250   short 0.750   length 6.2 tokens"
    assert lines[5] == " exact    p(tail) 0.032"
    assert lines[6] == " verdict  at step 25, B = 1024   gain +41.2 (38.5 to 44.0) points"
    assert lines[7] == "          elicited >= 38.1   created >= 0.0   lost >= 0.0"
    assert lines[8] == " report   runs/mine/report.html"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_no_number_is_cut_off_and_no_line_is_too_long(width):
    seen = a_progress(**{"free_energy/demonstration": 0.0226})
    seen.tell(25, "probe", {"report": a_report()})
    seen.tell(26, "alarm", {"alarm": "kl", "message": "a long message " * 20})
    lines = drawn(seen, width=width, watched={f"p(f{i})": 0.5 for i in range(9)}, report="runs/mine/report.html")
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    if width >= 40:
        for shown in ("30/100", "5.0k tokens/s", "F* -0.951", "gap 0.011", "demonstrations 0.023", "p(f8) 0.500",
                      "KL 1.188 nats/sequence", "elicited >= 38.1", "lost >= 0.0"):  # fmt: skip
            assert shown in text
    assert "…" in text  # of the alarm alone
    assert "runs/mine/report.html" in "".join(line[10:] for line in lines)


def test_where_only_ascii_can_be_written_nothing_else_is():
    seen = a_progress()
    seen.tell(26, "alarm", {"alarm": "kl", "message": "a long message " * 20})
    lines = drawn(seen, encoding="ascii")
    assert lines[0].startswith("-- runs/mine ---") and "###" in lines[1] and lines[-1].endswith("...")


def test_trouble_is_in_the_panel():
    seen = a_progress()
    for step in (3, 4, 5):
        seen.tell(step, "alarm", {"alarm": "kl", "message": f"high at {step}"})
    seen.tell(6, "fault", {"message": "close: row 3:\nraised", "rows": 2})
    seen.tell(7, "fault", {"message": "close: row 9:\nraised", "rows": 1})
    seen.tell(8, "checkpoint", {"name": None, "error": "no space left"})
    seen.tell(9, "support_off", {"reason": "MemoryError: much"})
    lines = drawn(seen)
    assert " alarm    step 4, kl: high at 4" in lines and " alarm    step 5, kl: high at 5" in lines
    assert "          and 1 before" in lines
    assert " fault    3 rows left out; step 7: close: row 9: raised" in lines
    assert " saved    checkpoint not saved: no space left" in lines
    assert " support  no longer tracked: MemoryError: much" in lines
    seen.tell(10, "checkpoint", {"name": "checkpoint-10", "error": None})
    assert " saved    checkpoint-10" in drawn(seen)


def test_pure_demonstrations_and_evaluations_have_their_lines():
    seen = Progress(0, 10, 0.0)
    seen.log(1, {"free_energy/total": 2.5, "free_energy/demonstration": 2.5, "free_energy/beta": 0.0})
    seen.log(1, {"eval_reward": 0.5, "eval_free_energy/total": -0.25})
    lines = drawn(seen)
    assert " F        2.500" in lines and " terms    demonstrations 2.500" in lines
    assert " eval     F -0.250   reward 0.500" in lines
    assert not any("KL" in line or line.startswith(" reward") for line in lines)


def test_what_is_said_meanwhile_stands_above_the_panel_and_nothing_is_torn(tmp_path, monkeypatch, capsys):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(getattr(sys, name), "isatty", lambda: True)
    logger, early = logging.getLogger("made.before"), logging.StreamHandler(sys.stderr)
    logger.addHandler(early)
    before = sys.stdout, sys.stderr, early.stream
    with Run(tmp_path) as run:
        run.steps(3)
        run.console.print("from the console")
        print("from print")
        logger.warning("from a logger")
        print("from an error", file=sys.stderr)
        run.tell("alarm", alarm="kl", message="of an alarm")
        run.steps(1)
        shown = run.screen.shown
    logger.removeHandler(early)
    top = next(i for i, line in enumerate(shown) if line.startswith("── "))
    above = "\n".join(shown[:top])
    for said in (
        "from the console",
        "from print",
        "from a logger",
        "from an error",
    ):
        assert said in above
    assert [line.split()[0] for line in shown[top + 1 :]] == ["step", "F", "terms", "reward", "alarm"]
    assert (sys.stdout, sys.stderr, early.stream) == before
    assert capsys.readouterr().out == capsys.readouterr().err == ""


@pytest.mark.parametrize("done", [True, False])
def test_the_terminal_is_left_as_it_was(tmp_path, done):
    """The panel of a run that ended goes; that of one that failed stays, to show where."""
    with pytest.raises(ZeroDivisionError), Run(tmp_path, steps=4) as run:
        run.console.print("before")
        run.steps(4 if done else 2)
        if done:
            run.callback.on_train_end(run.args, run.state, None)
        assert not run.screen.cursor_shown
        raise ZeroDivisionError
    assert run.screen.cursor_shown
    assert run.screen.shown[0] == "before"
    assert len(run.screen.shown) == (1 if done else 6)
    run.callback.close()  # a second time changes nothing
    run.console.print("after")
    assert run.screen.shown[-1] == "after"


def test_what_came_too_soon_to_be_drawn_is_drawn_with_the_clock(tmp_path):
    with Run(tmp_path) as run:
        run.steps(1)
        run.steps(1, reward=0.125)
        assert " reward   0.125   close 0.250   short 0.750   length 6.2 tokens" not in run.screen.shown
        time.sleep(1.5)
        assert " reward   0.125   close 0.250   short 0.750   length 6.2 tokens" in run.screen.shown
        assert run.screen.shown[1].startswith(" step     2/40 ")


def test_a_low_terminal_shows_the_first_lines(tmp_path):
    with Run(tmp_path, height=3) as run:
        run.steps(5)
        run.tell("checkpoint", name="checkpoint-5", error=None)
        assert [line.split()[0] for line in run.screen.shown] == ["──", "step", "F"]


@pytest.mark.parametrize("where", ["pipe", "CI", "dumb"])
def test_elsewhere_there_are_plain_lines(tmp_path, monkeypatch, where):
    if where != "pipe":
        monkeypatch.setenv(*{"CI": ("CI", "true"), "dumb": ("TERM", "dumb")}[where])
    with Run(tmp_path, terminal=where != "pipe", steps=40) as run:
        run.steps(1, **{"testbed/p/tail": 0.25})
        run.steps(11)
        run.tell("alarm", alarm="kl", message="in two\nlines")
        run.tell("fault", message="close: row 3: raised\n  Traceback", rows=2)
        run.steps(28)
        run.callback.on_log(run.args, run.state, None, logs={"train_runtime": 9.0})
    lines = run.file.getvalue().splitlines()
    values = "F -0.941  gap 0.011  reward term -1.000  KL 1.188  p(tail) 0.250"
    steps = [f"step {i}/40  {values}" for i in (1, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40)]
    assert lines == steps


def test_other_processes_say_nothing(tmp_path):
    run = Run(tmp_path)
    run.state.is_world_process_zero = False
    with run:
        run.steps(40)
        run.tell("alarm", alarm="kl", message="x")
    assert run.file.getvalue() == ""


def a_summary(**changes) -> dict:
    ends = {"start": 0.0812, "end": 0.9979}
    return {
        "families": {"tail [x]": ends, "barrier": {"start": 7e-11, "end": 0.9999}},
        "free_energy": {"total": {"start": -0.7854, "end": -0.9295}, "gap": {"start": 0.1637, "end": -0.0001}},
        "support": a_report(families={"tail [x]": a_report()}),
    } | changes


SAMPLE = {"family": "tail [x]", "prompt": "U1", "answer": "[3]", "before": "[1]", "before_correct": False}
SAMPLE |= {"after": "[3]", "after_correct": True}


def ended(summary, width=80, samples=(SAMPLE, SAMPLE | {"prompt": "U2"})) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    ending.summarise(console, summary, list(samples))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_ending_shows_both_ends_and_cuts_nothing_off(width):
    lines = ended(a_summary(), width)
    text, rows = "\n".join(lines), [line.split() for line in lines]
    assert max(map(len, lines)) <= width and "…" not in text
    assert ["tail", "[x]", "U1", "[1]", "✗", "[3]", "✓", "[3]"] in rows and "U2" not in text
    assert ["first", "tenth", "-0.785", "0.164"] in rows and ["last", "tenth", "-0.929", "0.000"] in rows
    verdict = ["41.2", "38.1", "0.0", "3.0", "0.0"]
    if width >= 80:
        assert ["tail", "[x]", "0.081", "0.998", *verdict] in rows and ["barrier", "7e-11", "0.999"] in rows
    else:
        assert ["tail", "[x]", "0.081", "0.998"] in rows and ["tail", "[x]", *verdict] in rows
    assert "consistent with elicitation." in " ".join(text.split())


def test_an_ending_without_support_or_with_tracking_switched_off():
    assert "Verdict" not in "\n".join(ended(a_summary(support={})))
    off = "\n".join(ended(a_summary(support={"off": "MemoryError: [much]"})))
    assert "support was not tracked to the end: MemoryError: [much]" in off and "Verdict" not in off


def test_the_farewell_names_the_report_only_where_there_is_one(tmp_path):
    console = Console(file=io.StringIO(), width=40)
    ending.farewell(console, tmp_path, tmp_path / "model", steps=40, seconds=75.0)
    assert "40 steps in 1:15" in console.file.getvalue() and "report" not in console.file.getvalue()
    (tmp_path / "report.html").write_text("x")
    ending.farewell(console, tmp_path, tmp_path / "model", steps=40, seconds=75.0)
    assert f"report     {tmp_path}/report.html\n" in console.file.getvalue()
