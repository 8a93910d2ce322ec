"""SupportCallback: accessible support, measured while a FreeEnergyTrainer trains."""

import logging
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from transformers import TrainerCallback

from fe_posttrain.sequences.decoding import Decoding
from fe_posttrain.support.budgets import Key, primary_budget
from fe_posttrain.support.displacement import Closure, closure, rms, window
from fe_posttrain.tracking.bank import banks_folder
from fe_posttrain.tracking.channels import Channel
from fe_posttrain.tracking.drawing import Drawing, together
from fe_posttrain.tracking.probes import Probes, Round, key_of
from fe_posttrain.tracking.reporting import (
    in_brief,
    mean_over_prompts,
    metrics_of,
    reported,
    samples_of,
    training_shares,
)
from fe_posttrain.tracking.riding import Displacements, Riding, gibbs_weight, rescored, scoring
from fe_posttrain.tracking.settings import SupportSettings
from fe_posttrain.tracking.signal import Signal
from fe_posttrain.tracking.weights import KeptWeights
from fe_posttrain.training import reference
from fe_posttrain.training.recording import tell
from fe_posttrain.training.rollout_events import Rollouts, prompt_key
from fe_posttrain.training.weights import weights_hash

logger = logging.getLogger(__name__)

PROBE_LEDGER_FILE = "support_probe_ledger.npz"
WEIGHTS_FILE = "support_window.safetensors"


class SupportCallback(TrainerCallback):
    """Tells what a run elicited from its reference, what it created and what it lost.

    On every generation it enters the rollouts into the support ledger and, every few updates, scores some under the
    weights of a few updates ago (displacement); at declared steps and at the end it draws from the policy on held-out
    prompts and compares with the reference's bank (calls, verdict). Training's weights and random state are those of
    a run without it. An error in it switches it off with its reason, and training goes on.

    Args:
        prompts: held-out rows: `prompt`, the columns that the signal reads, optionally a tag and a known answer
            (`demonstration` or `completion`).
        signal: what counts as correct, with TRL's reward signature; default the trainer's first reward function.
        labels: a function of the same signature that gives each completion a label, or None.
        channels: name -> augmented sampler of the reference; see `channels`.
        settings: how much is drawn and at which level; `support_...` keys.
        cache: folder of reference banks.
        say: told one line when the reference is drawn and at each probe in mid-run; main process only.

    Raises:
        ValueError: before training, for what cannot be tracked: no prompts, a graded signal without a threshold.
    """

    def __init__(
        self,
        prompts: Sequence[dict],
        signal: Callable | None = None,
        *,
        labels: Callable | None = None,
        channels: dict[str, Callable] | None = None,
        settings: SupportSettings | None = None,
        cache: str | Path | None = None,
        say: Callable[[str], None] = logger.info,
    ):
        self.settings = settings or SupportSettings()
        self.rows = [dict(row) for row in prompts]
        if not self.rows:
            raise ValueError("support_dataset_name: no probe prompts; support is about prompts at hand; give some")
        self.labels, self._signal = labels, signal
        self.channels = [Channel(name, function) for name, function in (channels or {}).items()]
        self.cache = Path(cache) if cache else banks_folder()
        self._tell = say
        self.off: str | None = None
        self.trainer = None
        self.probes: Probes | None = None
        self.riding: Riding | None = None
        self.displacements: Displacements | None = None
        self._start: KeptWeights | None = None
        self._report: dict[str, Any] = {}
        self._unlogged: dict[str, float] = {}

    # What the trainer calls

    def bind(self, trainer) -> None:
        """Remember the trainer, and the weights it starts from where nothing else keeps the reference."""
        self.trainer = trainer
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            self._switch_off("the weights are sharded; probes need whole ones on each process")
        elif trainer.args.sync_ref_model:
            raise ValueError("support: the reference moves (sync_ref_model), so no claim about it can hold; remove one")
        elif not reference.base_is_kept(trainer):
            self._start = KeptWeights(self._policy())

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        if self.off is None:
            self._prepare()

    def on_rollouts(self, args, state, control, rollouts: Rollouts) -> dict[str, float]:
        """Metrics of the step, on the main process."""
        if self.off == "everywhere":
            return {}
        metrics: dict[str, float] = {}
        correct = None
        if rollouts.log_reference is not None and self.trainer._resets.taken_at != 0 and self._still_on():
            with self._guarded(), self._reference():  # of the run's start, not the one in force
                rollouts = rescored(rollouts)
        if self.off is None:
            with self._guarded():
                correct = self._correct(rollouts)
                if self.riding is not None:
                    self.riding.add(rollouts, correct, self.trainer._beta_in_force)
        windows = self.displacements
        if windows is not None and windows.due(rollouts.step) and self._still_on():
            with self._guarded():
                metrics |= windows.end_window(
                    rollouts.step, correct, rollouts.prompt, rollouts.log_policy, scoring(rollouts)
                )
        return metrics

    def on_step_end(self, args, state, control, **kwargs) -> None:
        every = self.settings.support_steps
        if state.global_step >= state.max_steps or (every and state.global_step % every == 0):
            self._probe(state.global_step, last=state.global_step >= state.max_steps)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """A run that somebody ended before its last step still gets its verdict; one that a signal stopped goes on."""
        measured = self.probes and self.probes.rounds and self.probes.rounds[-1].step == state.global_step
        if not (measured or self.trainer.stopped_early):
            self._probe(state.global_step, last=True)

    def metrics_to_log(self) -> dict[str, float]:
        """What rode on the rollouts and what probes found, since the last call."""
        if self.off is None and self.riding is not None:
            with self._guarded():
                self._unlogged |= self.riding.flush()
        unlogged, self._unlogged = self._unlogged, {}
        return unlogged

    def summary(self) -> dict[str, Any]:
        """The report of the last probe round, and what rode on training; for summary.json."""
        if self.off is not None:
            return {"off": self._reason}
        found = dict(self._report)
        if self.riding is not None:
            self.riding.flush()
            certified, drawn = self.riding.certified_in()
            checked = found["checks"]["bar"]["verdict"] if found else "not checked"
            found["ledger"] = {
                "training_prompts_in": None if checked == "failed" else certified,  # void with its log-weights
                "bar": checked,
                "training_prompts_drawn": drawn,
                "zero_hit_prompts": self.riding.zero_hit_prompts(),
                "bytes_per_prompt": round(self.riding.ledger.bytes_per_prompt + self.riding.keys.itemsize),
            }
        if self.displacements is not None:
            found["displacement"] = {
                "windows": [w.as_json() for w in self.displacements.windows],
                "rms": rms(self.displacements.windows),
            }
        return found

    def checkpoint_state(self) -> dict:
        """What a resumed run needs, beside the files."""
        kept: dict[str, Any] = {"off": self._reason if self.off is not None else None, "unlogged": self._unlogged}
        if self.probes is not None:
            kept |= {"identity": self._identity, "probes": self.probes.state(), "report": self._report}
        if self.displacements is not None:
            kept["displacements"] = self.displacements.state()
        return kept

    def load_checkpoint_state(self, kept: dict) -> None:
        """Take back what `checkpoint_state` gave.

        Raises:
            ValueError: the checkpoint's statements are about another reference, decoding, verifier or prompts.
        """
        if kept["off"] is not None:
            self._switch_off(kept["off"])
            return
        self._prepare()
        for name, mine in self._identity.items() if self.off is None else ():
            if kept["identity"][name] != mine:
                raise ValueError(
                    f"support: {name} is {mine} and was {kept['identity'][name]} in the checkpoint; claims are "
                    "relative to it and cannot be carried over; restore it, or start a run of its own"
                )
        if self.off is None:
            self.probes.load_state(kept["probes"])
            self._unlogged, self._report = kept["unlogged"], kept["report"]
            if self.displacements is not None:
                self.displacements.load_state(kept["displacements"])

    def save_checkpoint_files(self, folder: Path) -> None:
        """The ledgers and the weights of the running window; from the main process."""
        if self.off is not None or self.probes is None or not self.trainer.accelerator.is_main_process:
            return
        np.savez(folder / PROBE_LEDGER_FILE, **self.probes.ledger.state())
        if self.riding is not None:
            self.riding.save(folder)
        if self.displacements is not None and self.displacements.kept is not None:
            self.displacements.kept.save(folder / WEIGHTS_FILE)

    def load_checkpoint_files(self, folder: Path) -> None:
        """Take back what `save_checkpoint_files` wrote."""
        if self.off is not None:
            return
        with np.load(folder / PROBE_LEDGER_FILE, allow_pickle=False) as kept:
            self.probes.ledger.load_state(dict(kept))
        if self.riding is not None:
            self.riding.load(folder)
        if self.displacements is not None and (folder / WEIGHTS_FILE).exists():
            self.displacements.kept = KeptWeights(self._policy())
            self.displacements.kept.load(folder / WEIGHTS_FILE)

    # Setting up

    def _prepare(self) -> None:
        """Once: what is tracked, and the reference's bank. Raises what a person can mend."""
        if self.probes is not None or self.off is not None:
            return
        with self._guarded(ValueError):
            self._set_up()

    def _set_up(self) -> None:
        trainer, args, settings = self.trainer, self.trainer.args, self.settings
        signal = Signal(self._signal or self._first_reward(), settings.support_threshold)
        decoding = Decoding(args.max_completion_length, args.temperature)
        with self._reference() as model:
            weights = weights_hash(model)
        budget = settings.support_budget or primary_budget(self._rollouts_per_prompt())
        key = key_of(weights, decoding, signal, budget, settings.support_delta, settings.support_alpha)
        drawing = Drawing(
            [row["prompt"] for row in self.rows],
            decoding,
            lambda prompts: trainer._tokenize_prompts(prompts)[0],
            lambda ids: trainer.processing_class.batch_decode(ids, skip_special_tokens=True),
            eos_token_ids=trainer.eos_token_ids,
            pad_token_id=trainer._tokenizer.pad_token_id,
            unk_token_id=getattr(trainer._tokenizer, "unk_token_id", None),
            batch_size=settings.support_batch_size or self._drawn_at_once(),
        )
        probes = Probes(self.rows, drawing, signal, self.labels, key, args.seed)
        self._identity = probes.identity | {"budget": budget, "delta": key.delta, "alpha": key.alpha}
        self._say(f"support: {len(self.rows)} probe prompts, B = {budget}; the reference's bank is in {self.cache}")
        screen, most = settings.support_draws, settings.support_reference_draws
        with self._reference() as model:
            probes.meet_reference(model, screen, most, self.channels, self.cache)
        if args.generates:
            self._set_up_riding(key)
        self.probes = probes

    def _set_up_riding(self, key: Key) -> None:
        trainer, args, settings = self.trainer, self.trainer.args, self.settings
        if trainer.accelerator.is_main_process:
            prompts = np.array([prompt_key(prompt) for prompt in trainer.train_dataset["prompt"]], dtype=np.int64)
            weights = None
            if args.has_gibbs_optimum:
                weights = args.reward_energy_weight * trainer.reward_weights.cpu().numpy()
            self.riding = Riding(prompts, key.budget, key.delta, key.alpha, weights, args.num_generations)
            if not args.uses_reference:
                logger.warning("support: beta is 0, so rollouts are not scored under the reference: no ledger")
        if settings.support_displacement_steps:
            every, rows = settings.support_displacement_steps, settings.support_displacement_rows
            self.displacements = Displacements(self._policy(), every, rows, args.seed)

    def _drawn_at_once(self) -> int:
        """Completions of a process that are known to fit: those of a rollout, or of an evaluation batch."""
        args = self.trainer.args
        return args.generation_batch_size // args.world_size if args.generates else args.per_device_eval_batch_size

    def _rollouts_per_prompt(self) -> float:
        """What the run draws of one training prompt."""
        trainer, args = self.trainer, self.trainer.args
        if not args.generates:
            return 0
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        steps = args.max_steps
        if steps <= 0:
            return args.num_train_epochs * args.num_generations
        return per_step * steps / max(1, len(trainer.train_dataset)) / args.num_iterations

    def _first_reward(self) -> Callable:
        for function in getattr(self.trainer, "reward_funcs", []):
            if hasattr(function, "function") and self.trainer._own_reward:
                return function.function
        raise ValueError(
            "support_signal: the run has no reward function that could tell a correct completion; write "
            "support_signal: NAME, as in reward_funcs"
        )

    # Measuring

    def _correct(self, rollouts: Rollouts) -> np.ndarray:
        """Which rollouts are correct, (N,): from the rewards of the step, or by asking the signal."""
        signal = self.probes.signal
        for i, function in enumerate(self.trainer.reward_funcs):
            if getattr(function, "function", None) is signal.function:
                return signal.of_values(rollouts.rewards[:, i])
        mine = together(lambda: signal.asked(rollouts.inputs, rollouts.completions).tolist())
        return np.array(mine)

    def _probe(self, step: int, last: bool) -> None:
        if self.off == "everywhere" or self.probes is None or not self._still_on():
            return
        with self._guarded():
            found, batch, shown = self.probes.round(self._policy(), self._reference, step, self.settings.support_draws)
            ended = self._end_displacement(found, batch) if last and self.displacements is not None else None
            tag, pooled = self.settings.support_tag, self.settings.support_labels_pooled
            self._report = reported(self.probes, found, self._reference_words(), tag, ended, pooled_labels=pooled)
            if (weight := gibbs_weight(self.trainer, self.probes.signal)) is not None:
                beta = self.trainer._beta_in_force
                self._report["objective"] = self.probes.free_energy(found, weight, beta)
            self._unlogged |= metrics_of(self._report)
            logger.info("step %d: %s", step, self._report["sentence"])
            tell(
                self.trainer,
                "probe",
                report=self._report,
                samples=samples_of(self._report, self.rows, shown),
            )
            if not last:
                self._say(f"probe at step {step}: {in_brief(self._report)}")

    def _end_displacement(self, found: Round, batch) -> Closure | None:
        """The last window ends with the probe's draws, which nothing was trained on; then sum against probes."""
        windows, step = self.displacements, found.step
        shares = training_shares(self.rows, self.trainer.train_dataset, self.settings.support_tag)
        weight = shares[batch.row] * batch.correct
        if windows.kept is not None and step > windows.kept_at and weight.any():
            rng = np.random.default_rng([self.trainer.args.seed, step])
            chosen = np.sort(rng.choice(len(weight), size=4 * windows.rows, p=weight / weight.sum()))
            ids = [batch.completion_ids[i] for i in chosen]
            with windows.kept.swapped_in(self._policy()):
                before = self.probes.drawing.log_probs(self._policy(), batch.row[chosen], ids)
            ratio = before - batch.log_probs[chosen]
            windows.windows.append(window(step, step - windows.kept_at, ratio, batch.row[chosen]))
            windows.kept, windows.kept_at = KeptWeights(self._policy()), step
        if windows.kept_at < step or windows.windows[0].step > windows.windows[0].updates:
            return None  # the last updates, or the first ones, are in the probes alone
        start = mean_over_prompts(self.probes.bank.screened.mean(1), shares)
        correct, drawn = found.totals
        return closure(windows.windows, start, mean_over_prompts(correct / drawn, shares))

    def _reference_words(self) -> str:
        name = getattr(self._policy().config, "_name_or_path", "") or "model"
        return f"{Path(name).name} ({self.probes.key.reference})"

    # Weights

    def _policy(self):
        return self.trainer.accelerator.unwrap_model(self.trainer.model)

    @contextmanager
    def _reference(self):
        """What claims are relative to: the policy of the start, as a model that can be called."""
        with reference.in_place(self.trainer, self._start) as model:
            yield model

    # Faults

    @contextmanager
    def _guarded(self, *raised: type[Exception]):
        """What fails inside switches tracking off, except errors of the kinds `raised`."""
        try:
            yield
        except raised:
            raise
        except Exception as error:
            self._switch_off(f"{type(error).__name__}: {error}")

    def _say(self, line: str) -> None:
        if self.trainer.accelerator.is_main_process:
            self._tell(line)

    def _switch_off(self, reason: str) -> None:
        self.off, self._reason = "here", reason
        if self.trainer is not None:
            tell(self.trainer, "support_off", reason=reason)
        logger.warning("support: tracking is switched off, training goes on: %s", reason)

    def _still_on(self) -> bool:
        """Whether no process has switched tracking off; asked by all of them at the same moments."""
        reasons = [reason for reason in gather_object([self._reason if self.off else None]) if reason]
        if reasons and self.off is None:
            self._switch_off(f"another process: {reasons[0]}")
        if reasons:
            self.off = "everywhere"
        return not reasons
