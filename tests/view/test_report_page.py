"""The report as a page: every number on it is one of the files, every line goes through the logged rows."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest
from read_page import Axis, Element, plots, points, read
from run_folders import NASTY, a_report, a_row, a_run

from fe_posttrain.view.page.comparison import write_comparison
from fe_posttrain.view.page.report import write_report


def page_of(run: Path) -> Element:
    return read(write_report(run).read_text())


def rows_of(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def numbers_in(value) -> set[float]:
    """Every number of a JSON value."""
    if isinstance(value, dict):
        return {n for item in value.values() for n in numbers_in(item)}
    if isinstance(value, list):
        return {n for item in value for n in numbers_in(item)}
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


def depth(p: float) -> float:
    """D at delta .05, written as the ln of the draws n in (1-p)^n = delta."""
    return math.log(math.log(0.05) / math.log(1 - p))


def depth_of_counts(correct: int, drawn: int) -> float:
    if correct == 0:
        return depth(1 - 0.05 ** (1 / drawn))  # nobody who draws so often misses a greater p with probability .95
    return depth(0.05 ** (1 / drawn) if correct == drawn else correct / drawn)


def derived(run: Path) -> set[float]:
    """What the page may show beside the numbers of the files, computed here once more."""
    found = {0.0}
    summary = json.loads((run / "summary.json").read_text())["support"]
    for window in summary["displacement"]["windows"]:
        found |= {window["value"] - window["se"], window["value"] + window["se"]}
    last = summary["points"]
    found |= {float(n) for n in Counter(zip(*last["regime"].values(), strict=True)).values()}
    entered = list(zip(last["support"]["start"], last["support"]["now"], strict=True)).count(("out", "in"))
    fell = sum(
        last["correct"]["trained"][i] < last["correct"]["reference"][i] for i in range(len(last["prompt"]))
    )  # both sides have the same draws here
    return found | {float(entered), float(fell)}


def is_near(value: float, known: list[float]) -> bool:
    return any(math.isclose(value, k, rel_tol=1e-9, abs_tol=1e-12) for k in known)


def test_every_number_is_one_of_the_files(tmp_path):
    run = a_run(tmp_path / "run")
    shown = [float(one.words["value"]) for one in page_of(run).all("data")]
    files = {*numbers_in(rows_of(run, "metrics.jsonl")), *numbers_in(rows_of(run, "events.jsonl"))}
    files |= numbers_in(json.loads((run / "summary.json").read_text())) | {0.125 * i for i in range(6)}
    last = json.loads((run / "summary.json").read_text())["support"]["points"]
    depths = [
        depth_of_counts(c, n)
        for side in ("reference", "trained")
        for c, n in zip(last["correct"][side], last["drawn"][side], strict=True)
    ]
    assert len(shown) > 500
    unknown = [v for v in shown if v not in files | derived(run) and not is_near(v, depths)]
    assert unknown == []


def test_a_number_is_shown_as_what_it_carries(tmp_path):
    for one in page_of(a_run(tmp_path / "run")).all("data"):
        text = one.text.replace("−", "-").replace(",", "").removesuffix(" s").removesuffix(" min")
        if "min" not in one.text:
            assert float(text) == pytest.approx(float(one.words["value"]), rel=6e-4, abs=0.1), one.text


def test_certified_ends_are_rounded_towards_caution(tmp_path):
    run = a_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    terms = summary["support"]["verdict"]
    terms["created"] = {"value": 12.38, "low": 12.38, "high": 31.01}
    (run / "summary.json").write_text(json.dumps(summary))
    table = next(one for one in page_of(run).all("section") if one.words["id"] == "verdict").all("table")[0]
    line = next(row for row in table.all("tr") if "created" in row.whole_text())
    assert [cell.whole_text() for cell in line.all("td")] == ["12.3", "12.3", "31.1"]


def lines_of(page: Element) -> dict[str, list[tuple[Axis, Axis, list]]]:
    found: dict[str, list] = {}
    for plot in plots(page):
        if "data-y-domain" not in plot.words:
            continue
        axes = Axis.of(plot, "x"), Axis.of(plot, "y")
        for path in plot.all("path"):
            if "data-key" in path.words:
                found.setdefault(path.words["data-key"], []).append((*axes, points(path)))
    return found


@pytest.mark.parametrize("steps", [40, 1500])
def test_lines_go_through_logged_rows_to_half_a_pixel(tmp_path, steps):
    run = a_run(tmp_path / "run", steps, probes=(20, 40))
    rows = rows_of(run, "metrics.jsonl")
    lines = lines_of(page_of(run))
    keys = {key for row in rows for key in row} - {"step", "seconds", "free_energy/beta"}
    assert {key for key in keys if "/calls/" not in key} <= {*lines}
    for key, drawn in lines.items():
        logged = {row["step"]: row[key] for row in rows if key in row}
        if key in ("attribution", "support/displacement"):
            continue
        for x, y, places in drawn:
            steps_drawn = [round(x.value(place)) for place, _ in places]
            assert len(places) <= 500
            assert {1, steps} <= {*steps_drawn} or len(logged) <= 2
            values = [logged[step] for step in steps_drawn]
            for (at, up), step, value in zip(places, steps_drawn, values, strict=True):
                assert abs(x.value(at) - step) <= x.step(step)
                assert abs(y.value(up) - value) <= y.step(value), (key, step)
            assert max(values) == max(logged.values()) and min(values) == min(logged.values())
            assert len(places) == len(logged) or steps > 500


def test_attribution_and_displacement_are_those_of_the_summary(tmp_path):
    run = a_run(tmp_path / "run")
    support = json.loads((run / "summary.json").read_text())["support"]
    lines = lines_of(page_of(run))
    wanted = {
        "attribution": [(row["budget"], row["share"]) for row in support["attribution"]],
        "support/displacement": [(w["step"], w["value"]) for w in support["displacement"]["windows"]],
    }
    for key, expected in wanted.items():
        [(x, y, places)] = lines[key]
        for (at, up), (first, second) in zip(places, expected, strict=True):
            assert abs(x.value(at) - first) <= x.step(first)
            assert abs(y.value(up) - second) <= y.step(second)


def test_the_gain_bar_is_as_long_as_its_terms(tmp_path):
    run = a_run(tmp_path / "run")
    verdict = json.loads((run / "summary.json").read_text())["support"]["verdict"]
    plot = plots(page_of(run))[0]
    x = Axis.of(plot, "x")
    drawn = {}
    for rect in plot.all("rect"):
        a, wide = float(rect.words["x"]), float(rect.words["width"])
        drawn[rect.words["data-key"]] = x.value(a + wide) - x.value(a)
        assert float(rect.words["data-value"]) == verdict[rect.words["data-key"].removeprefix("verdict/")]["value"]
    terms = {f"verdict/{name}": abs(verdict[name]["value"]) for name in ("elicited", "created", "undetermined", "lost")}
    assert drawn == pytest.approx({name: value for name, value in terms.items() if value}, abs=2 * x.step(0))
    [whisker] = [one for one in plot.all("line") if one.words.get("data-key") == "verdict/gain"]
    ends = [x.value(float(whisker.words[name])) for name in ("x1", "x2")]
    assert ends == pytest.approx([verdict["gain"]["low"], verdict["gain"]["high"]], abs=x.step(0))


def test_the_map_has_every_prompt_where_its_counts_put_it(tmp_path):
    run = a_run(tmp_path / "run", prompts=30)
    support = json.loads((run / "summary.json").read_text())["support"]["points"]
    [plot] = [one for one in plots(page_of(run)) if "map" in one.words["class"]]
    x, y = Axis.of(plot, "x"), Axis.of(plot, "y")
    marks = [one.words for one in plot.all() if "data-count" in one.words]
    assert sum(int(mark["data-count"]) for mark in marks) == 30
    drawn = [
        (x.value(float(mark["data-x"])), y.value(float(mark["data-y"]))) for mark in marks
        for _ in range(int(mark["data-count"]))
    ]  # fmt: skip
    sides = [
        [depth_of_counts(c, n) for c, n in zip(support["correct"][side], support["drawn"][side], strict=True)]
        for side in ("reference", "trained")
    ]
    for found, expected in zip(sorted(drawn), sorted(zip(*sides, strict=True)), strict=True):
        assert found == pytest.approx(expected, abs=x.step(0))
    hollow = sum(int(mark["data-count"]) for mark in marks if "hollow" in mark["class"])
    never = [0 in pair for pair in zip(support["correct"]["reference"], support["correct"]["trained"], strict=True)]
    assert hollow == sum(never)
    budgets = [one for one in plot.all("line") if one.words["class"] == "budget primary"]
    upright = [x.value(float(one.words["x1"])) for one in budgets if one.words["x1"] == one.words["x2"]]
    assert upright == pytest.approx([math.log(16)], abs=0.02)


def test_flow_and_columns_count_the_prompts(tmp_path):
    run = a_run(tmp_path / "run")
    report = json.loads((run / "summary.json").read_text())["support"]
    page = page_of(run)
    bars = [one.words for one in page.all("rect") if one.words.get("data-key", "").startswith("support/calls/")]
    flow = {bar["data-key"]: int(bar["data-value"]) for bar in bars if "data-step" not in bar}
    calls = {f"support/calls/{side}/{r}": n for side, by in report["calls"].items() for r, n in by.items() if n}
    assert flow == calls
    columns = {(int(b["data-step"]), b["data-key"]): b for b in bars if "data-step" in b}
    rows = {row["step"]: row for row in rows_of(run, "metrics.jsonl")}
    [plot] = [one for one in plots(page) if any("data-step" in rect.words for rect in one.all("rect"))]
    y = Axis.of(plot, "y")
    for (step, key), bar in columns.items():
        assert int(bar["data-value"]) == rows[step][key]
        high = abs(y.value(float(bar["height"])) - y.value(0.0))
        assert high == pytest.approx(rows[step][key], abs=2 * y.step(0))


def test_nothing_is_loaded_and_texts_are_escaped(tmp_path):
    run = a_run(tmp_path / "run")
    text = write_report(run).read_text()
    page = read(text)
    names = {one.name for one in page.all()}
    assert not names & {"script", "img", "iframe", "object", "embed", "b>", "video", "audio"}
    for one in page.all():
        for word, value in one.words.items():
            assert not word.startswith("on")
            assert "http:" not in (value or "") and "https:" not in (value or "")
            if word in ("src", "href", "xlink:href"):
                assert value == "data:,"
    [style] = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text
    assert "models/a<b>" in page.whole_text()
    assert NASTY in page.whole_text()
    assert "<b>policy 1</b>" in page.whole_text()


def test_every_drawing_says_what_it_shows_and_has_its_numbers_behind_it(tmp_path):
    page = page_of(a_run(tmp_path / "run"))
    drawings = page.all("svg")
    assert len(drawings) > 12
    for one in drawings:
        assert one.words["role"] == "img" and len(one.words["aria-label"]) > 15
    for one in page.all("figure"):
        assert one.all("details") or "hero" in one.words["class"]


def test_a_killed_run_in_its_middle(tmp_path):
    run = a_run(tmp_path / "run", finished=False)
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(run / name, "a") as file:
            file.write('{"step": 41, "free_energy/total": 12.')
    text = page_of(run).whole_text()
    assert "step 40 of 40, unfinished" in text
    assert a_report(40, draws=104)["sentence"].split(". ")[0] in text


@pytest.mark.parametrize("finished", [True, False])
def test_without_a_probe_free_energy_leads(tmp_path, finished):
    run = a_run(tmp_path / "run", probes=(), finished=finished)
    page = page_of(run)
    text = page.whole_text()
    assert "No probe yet" in text
    assert {"prompts", "time", "pairs"}.isdisjoint(one.words.get("id") for one in page.all("section"))
    first, last = a_row(1)["free_energy/total"], a_row(40)["free_energy/total"]
    opening = next(one for one in page.all("section") if one.words["id"] == "verdict")
    assert {first, last} <= {float(one.words["value"]) for one in opening.all("data")}


def test_an_untracked_run_says_so_and_a_run_that_gave_up_says_why(tmp_path):
    run = a_run(tmp_path / "run", probes=(), recipe={"support": False})
    assert "Support was not tracked (support: false)" in page_of(run).whole_text()
    other = a_run(tmp_path / "other", probes=())
    (other / "summary.json").write_text(json.dumps({"free_energy": {}, "support": {"off": "no <verifier>"}}))
    assert "Support was not tracked to the end: no <verifier>" in page_of(other).whole_text()


def test_a_verdict_says_that_tracking_stopped_after_it(tmp_path):
    run = a_run(tmp_path / "run", finished=False)
    assert "Tracking stopped" not in page_of(run).whole_text()
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"step": 40, "seconds": 9.5, "event": "support_off", "reason": "no <room>"}) + "\n")
    assert "Tracking stopped after this probe: no <room>" in page_of(run).whole_text()


def test_a_voided_verdict_has_no_upper_ends_and_a_failed_check(tmp_path):
    run = a_run(tmp_path / "run", probes=(20,), finished=False)
    events = rows_of(run, "events.jsonl")
    body = events[-1]["report"]
    body["checks"] = {"bar": {"verdict": "failed", "df": 0.5, "se": 0.01, "why": "+0.50 nats, SE 0.01"}}
    for name in ("elicited", "created", "lost"):
        body["verdict"][name] = {"value": 0.0, "low": 0.0, "high": None}
    body["verdict"]["undetermined"]["value"] = body["verdict"]["gain"]["value"]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = page_of(run)
    assert [one.whole_text() for one in page.all("li") if one.words.get("class") == "failed"] == ["✗ BAR failed"]
    bars = [one.words["data-key"] for one in plots(page)[0].all("rect")]
    assert bars == ["verdict/undetermined"]


def test_one_step_sft_and_evaluation_rows(tmp_path):
    short = a_run(tmp_path / "one", steps=1, probes=(1,))
    assert "step 1 of 1, finished" in page_of(short).whole_text()
    sft = a_run(tmp_path / "sft", probes=(), recipe={"reward_energy_weight": 0.0, "beta": 0.0,
                                                      "demonstration_energy_weight": 1.0})  # fmt: skip
    rows = [
        {"step": s, "seconds": s, "free_energy/total": 3.0 / s, "free_energy/demonstration": 3.0 / s,
         "free_energy/beta": 0.0, "loss": 1.0 / s} for s in (1, 2, 3)
    ] + [{"step": 3, "seconds": 4, "eval_loss": 0.75, "eval_free_energy/total": 2.5}]  # fmt: skip
    (sft / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = page_of(sft)
    assert "F(π) = 1 E_demonstrations[−log π]" in page.whole_text()
    assert {2.5, 0.75} <= {float(one.words["value"]) for one in page.all("data")}
    assert any(one.words.get("data-key") == "eval_free_energy/total" for one in page.all("circle"))


def test_an_empty_run_is_a_page_too(tmp_path):
    run = a_run(tmp_path / "run", probes=(), finished=False)
    (run / "metrics.jsonl").unlink()
    (run / "events.jsonl").unlink()
    assert "Nothing is logged yet" in page_of(run).whole_text()


def test_numbers_that_are_none_leave_a_gap(tmp_path):
    run = a_run(tmp_path / "run", probes=())
    rows = rows_of(run, "metrics.jsonl")
    rows[4] |= {"reward": None, "entropy": float("nan"), "grad_norm": float("inf")}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = lines_of(page_of(run))
    for key in ("reward", "entropy", "grad_norm"):
        [(x, _, places)] = lines[key]
        assert 5 not in [round(x.value(place)) for place, _ in places]
        assert len(places) == 39


def test_faults_and_alarms_are_told_in_order(tmp_path):
    run = a_run(tmp_path / "run", finished=False)
    told = [
        {"event": "fault", "message": "reward <f>: timed out", "rows": 3},
        {"event": "alarm", "alarm": "collapse", "message": "entropy fell"},
        {"event": "checkpoint", "name": "checkpoint-20", "error": None},
        {"event": "checkpoint", "name": None, "error": "disk is full"},
        {"event": "support_off", "reason": "the verifier raised"},
        {"event": "resume", "steps": 40},
        {"event": "end", "status": "failed", "error": "ValueError: broken"},
    ]
    with open(run / "events.jsonl", "a") as file:
        file.writelines(json.dumps({"step": 30 + i, "seconds": 9.5} | e) + "\n" for i, e in enumerate(told))
    page = page_of(run)
    health = next(one for one in page.all("section") if one.words["id"] == "health")
    rows = [row.whole_text() for row in health.all("table")[0].all("tr")[1:]]
    wanted = ["timed out (3 rows)30", "collapseentropy fell31", "disk is full33", "the verifier raised34",
              "at step 35 of 4035", "ValueError: broken36"]  # fmt: skip
    assert len(rows) == len(wanted)
    for row, words in zip(rows, wanted, strict=True):
        assert words in row


def test_a_long_run_of_many_prompts_stays_small(tmp_path):
    run = a_run(tmp_path / "run", steps=2000, probes=(1000, 2000), prompts=200)
    path = write_report(run)
    assert 100_000 < path.stat().st_size < 2_000_000
    lines = lines_of(read(path.read_text()))
    assert all(len(places) <= 500 for drawn in lines.values() for _, _, places in drawn)


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = a_run(tmp_path / "run")
    write_report(run).write_text("before")
    left = sorted(run.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_report(run)
    assert (run / "report.html").read_text() == "before"
    assert sorted(run.iterdir()) == left


def test_two_runs_beside_each_other(tmp_path):
    runs = [a_run(tmp_path / "a"), a_run(tmp_path / "b", steps=60, probes=(60,))]
    page = read(write_comparison(runs, tmp_path / "both.html").read_text())
    drawn = {run: lines_of(page)["free_energy/total"][i] for i, run in enumerate(runs)}
    for run, (x, y, places) in drawn.items():
        rows = {row["step"]: row["free_energy/total"] for row in rows_of(run, "metrics.jsonl")}
        assert len(places) == len(rows)
        for at, up in places:
            step = round(x.value(at))
            assert abs(y.value(up) - rows[step]) <= y.step(rows[step])
    ends = {v for run in runs for v in numbers_in(json.loads((run / "summary.json").read_text())["support"]["verdict"])}
    shown = {float(one.words["value"]) for one in page.all("data")}
    assert ends <= shown
    assert "different keys" not in page.whole_text()


def test_verdicts_under_different_keys_do_not_compare(tmp_path):
    runs = [a_run(tmp_path / name) for name in "ab"]
    summary = json.loads((runs[1] / "summary.json").read_text())
    summary["support"]["key"]["budget"] = 64
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    text = read(write_comparison(runs, tmp_path / "both.html").read_text()).whole_text()
    assert "different keys (budget): their numbers do not compare" in text
