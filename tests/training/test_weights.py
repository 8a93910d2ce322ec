"""Names of weights."""

import small
import torch
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import use_adapter

from fe_posttrain.training.weights import weights_hash


def test_the_name_is_that_of_the_weights_in_effect():
    """A support bank is kept under it: another adapter as reference must not be taken for the base."""
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    base = weights_hash(small.model())
    assert base != weights_hash(small.model(seed=1))
    model = get_peft_model(small.model(), lora, adapter_name="ref")

    def named(adapter) -> str:
        with use_adapter(model, adapter_name=adapter):
            return weights_hash(model)

    off, on = named(None), named("ref")
    assert off != on
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.add_(1.0)
    assert named(None) == off and named("ref") not in (off, on)
