"""Health: rewards, completions, optimisation and throughput as small multiples, and what happened on the way."""

from collections.abc import Mapping
from typing import Any

from fe_posttrain.view.page.markup import Html, data, section, table, tag
from fe_posttrain.view.page.opening import duration
from fe_posttrain.view.page.series import judged_only, logged, smalls
from fe_posttrain.view.reading import RunData

_SHOWN = (
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "rewards/*/mean",
    "rewards/*/faults",
    "entropy",
    "completions/mean_length",
    "completions/clipped_ratio",
    "clip_ratio/region_mean",
    "mean_token_accuracy",
    "loss",
    "grad_norm",
    "learning_rate",
    "step_time",
    "num_tokens",
)
_TOLD = ("fault", "alarm", "support_off", "resume", "end")


def health(run: RunData) -> Html | None:
    """The section; None where there is nothing to show."""
    rewards = logged(run, "rewards/*/mean")
    keys = [key for key in logged(run, *_SHOWN) if len(rewards) > 1 or key not in rewards]
    drawn = smalls(run, [*keys, *judged_only(run, "loss", *_SHOWN[:4])])
    told = happenings(run)
    if drawn is None and told is None:
        return None
    return section("health", "Health", told, drawn)


def happenings(run: RunData) -> Html | None:
    """Faults, alarms, failed checkpoints, resumes and the end, in the order in which they happened."""
    rows = [
        [kind, text, data(event["step"]), duration(event["seconds"])]
        for event in run.events
        if (said := in_words(event)) is not None
        for kind, text in [said]
    ]
    if not rows:
        return tag("p", "No fault, alarm or failed checkpoint was recorded.", class_="lead")
    return table(["what happened", "", "step", "after"], rows, texts=2)


def in_words(event: Mapping[str, Any]) -> tuple[Html, str] | None:
    """Kind and message of an event that a person should see; None for the others."""
    kind = event["event"]
    if kind == "checkpoint":
        return (_kind("checkpoint failed", "bad"), event["error"]) if event.get("error") else None
    if kind not in _TOLD:
        return None
    if kind == "alarm":
        return _kind(f"alarm: {event.get('alarm', '')}", "bad"), event.get("message", "")
    if kind == "end":
        worse = event.get("status") not in ("finished", None)
        return _kind(f"{event.get('status')}", "bad" if worse else "good"), event.get("error") or "end of the run"
    if kind == "resume":
        return _kind("resumed", None), f"at step {event['step']} of {event['steps']}"
    words = {"fault": event.get("message"), "support_off": event.get("reason")}[kind]
    rows = f" ({event['rows']} rows)" if event.get("rows") else ""
    return _kind(kind.replace("_", " "), "bad"), f"{words}{rows}"


def _kind(text: str, tone: str | None) -> Html:
    return tag("span", text, class_=f"sign {tone}" if tone else None)
