"""Cards where a launch leaves them: in each checkpoint before it is hashed, beside the model, and what is pushed."""

import hashlib
import json
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard

from fe_posttrain.recipe import cards
from fe_posttrain.recipe.launch import NotSaved, launch
from fe_posttrain.training.checkpoints import damage

ROOT = Path(__file__).parents[2]
SMALL = {
    "max_steps": 2,
    "probe_rows": 4,
    "prompt_rows": 64,
    "save_strategy": "steps",
    "save_steps": 1,
    "support": False,
}


def run(folder: Path, **changed) -> Path:
    """The quick start, without what it tracks of support."""
    lines = (ROOT / "recipes" / "quickstart.yaml").read_text().splitlines()
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / "recipe.yaml").write_text("\n".join(line for line in lines if not line.startswith("support")))
    words = [word for key, value in (SMALL | changed).items() for word in (f"--{key}", str(value).lower())]
    return launch(str(folder.parent / "recipe.yaml"), [*words, "--output_dir", str(folder)])


@pytest.fixture
def hub(monkeypatch):
    """The two calls that reach the network, and what they were given."""
    calls = []

    def upload_folder(self, *, repo_id, folder_path, **options):
        files = {path.relative_to(folder_path).as_posix() for path in Path(folder_path).rglob("*") if path.is_file()}
        text = (Path(folder_path) / "README.md").read_text()
        settings = torch.load(Path(folder_path) / "training_args.bin", weights_only=False)
        calls.append(SimpleNamespace(repo=repo_id, card=text, files=files, settings=settings, token=options["token"]))
        done = Future()
        done.set_result(None)
        return done

    def create_repo(self, repo_id, **options):
        return SimpleNamespace(repo_id=repo_id)

    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    return calls


def test_every_checkpoint_and_the_model_explain_themselves_and_nothing_is_pushed(tmp_path, hub):
    folder = run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for step in (1, 2):
        checkpoint = folder / f"checkpoint-{step}"
        text = (checkpoint / "README.md").read_text()
        assert f"after step {step} of 2" in text and f"tenth of {step} logged steps (1 to {step})" in text
        listed = json.loads((checkpoint / "manifest.json").read_text())["files"]["README.md"]["sha256"]
        assert listed == hashlib.sha256(text.encode()).hexdigest() and damage(checkpoint) is None
        assert str(tmp_path) not in text
    text = (folder / "model" / "README.md").read_text()
    last = next(row["free_energy/total"] for row in rows if row["step"] == 2)
    assert f"| F | {rows[0]['free_energy/total']:.3f} | {last:.3f} |" in text
    kl = json.loads((folder / "summary.json").read_text())["exact"]["end"]["testbed/kl/tail_10"]
    assert f"{kl:.3f}" in next(line for line in text.splitlines() if line.startswith("| `tail_10` |"))
    assert ModelCard.load(folder / "model" / "README.md").data.library_name == "transformers"
    assert hub == [] and not (folder / "README.md").exists()


def test_two_runs_of_one_recipe_have_the_same_cards(tmp_path):
    first, second = (run(tmp_path / name / "run") for name in ("a", "b"))
    for name in ("checkpoint-1", "checkpoint-2"):
        assert (first / name / "README.md").read_bytes() == (second / name / "README.md").read_bytes()


def test_what_is_pushed_on_request_is_our_card(tmp_path, hub):
    folder = run(tmp_path / "run", push_to_hub=True, hub_model_id="somebody/mine", hub_token="hf_secret")
    assert {call.repo for call in hub} == {"somebody/mine"} and len(hub) >= 2
    first, last = hub[0], hub[-1]
    assert "after step 1 of 2" in first.card and "a checkpoint" not in last.card
    for call in hub:
        assert "from_pretrained('somebody/mine'" in call.card and "F(pi) = 1 E[-reward]" in call.card
        assert "](report.html)" in call.card and str(folder) not in call.card
        assert not any(name.startswith(".") for name in call.files)  # nothing that is still being written
        assert call.token == "hf_secret" and call.settings.hub_token is None
    assert "KL at end" in last.card  # of the summary


def test_a_card_that_cannot_be_written_costs_its_numbers_and_no_weights(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise KeyError("beta")

    monkeypatch.setattr(cards, "model_card", broken)
    folder = run(tmp_path / "run")
    assert damage(folder / "checkpoint-2") is None and (folder / "model" / "model.safetensors").is_file()
    assert "F(pi) = 1 E[-reward]" in (folder / "model" / "README.md").read_text()
    assert "has no numbers: KeyError: 'beta'" in caplog.text


def test_a_push_that_fails_at_the_end_says_that_everything_is_saved(tmp_path, hub, monkeypatch):
    def unreachable(self, **_):
        raise ConnectionError("no route to the Hub")

    monkeypatch.setattr(HfApi, "upload_folder", unreachable)
    with pytest.raises(NotSaved, match=r"push_to_hub: no route to the Hub; everything is saved in .*run; push it "):
        run(tmp_path / "run", push_to_hub=True, hub_model_id="somebody/mine", save_strategy="no")
    assert (tmp_path / "run" / "summary.json").is_file() and (tmp_path / "run" / "model" / "README.md").is_file()
