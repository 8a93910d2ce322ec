"""The demonstration energy at temperature 0, approached from the reverse side, against TRL's own DFT loss."""

import pytest
import torch
from datasets import Dataset
from small import SETTINGS, TOKENIZER, model
from trl import SFTConfig, SFTTrainer

from fe_posttrain.theory.projections import demonstration_loss


@pytest.mark.parametrize(("loss_type", "projection"), [("dft", "reverse"), ("nll", "forward")])
def test_gradients_of_a_model_are_trls(tmp_path, loss_type, projection):
    rows = [
        {"input_ids": [3, 4, 5, 6, 7], "labels": [-100, -100, 5, 6, 7]},
        {"input_ids": [8, 9, 10], "labels": [-100, 9, 10]},
    ]
    settings = {**SETTINGS, "loss_type": loss_type, "average_tokens_across_devices": False}
    trainer = SFTTrainer(
        model=model(),
        args=SFTConfig(output_dir=str(tmp_path), **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=TOKENIZER,
    )
    batch = trainer.data_collator(rows)
    trainer.model.train()
    trainer.compute_loss(trainer.model, dict(batch)).backward()
    theirs = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}

    ours = model()
    logits = ours(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    mask = labels != -100
    loss = demonstration_loss(logits.log_softmax(-1), labels.clamp(min=0), projection=projection)
    (loss * mask).sum().div(mask.sum()).backward()
    assert int(mask.sum()) == 5
    for name, parameter in ours.named_parameters():
        assert parameter.grad.norm() > 0, name
        assert torch.allclose(parameter.grad, theirs[name], rtol=1e-4, atol=1e-7), name
