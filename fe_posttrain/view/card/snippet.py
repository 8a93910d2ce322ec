"""How to load and use the model that a run leaves, as Python for its card."""

_PLAIN = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({path!r}, dtype="auto", device_map="auto")
"""
_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained({path!r}, dtype="auto", device_map="auto")
"""
_GENERATE = """tokenizer = AutoTokenizer.from_pretrained({path!r})
prompt = {prompt!r}
{encode}
output = model.generate(**inputs.to(model.device), max_new_tokens={tokens}, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_AS_TEXT = 'inputs = tokenizer(prompt, return_tensors="pt")'
_AS_CHAT = """inputs = tokenizer.apply_chat_template(
    prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""


def load_snippet(path: str, prompt: str | list[dict[str, str]], *, adapter: bool, tokens: int) -> str:
    """Python that loads the model at `path` and answers `prompt`, plain or conversational."""
    load = (_ADAPTER if adapter else _PLAIN).format(path=path)
    encode = _AS_TEXT if isinstance(prompt, str) else _AS_CHAT
    return load + _GENERATE.format(path=path, prompt=prompt, encode=encode, tokens=tokens)
