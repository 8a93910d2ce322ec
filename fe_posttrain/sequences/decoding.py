"""The declared decoding."""

from dataclasses import dataclass

from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


@dataclass(frozen=True)
class Decoding:
    """The declared decoding: what every log-prob of a sampler, and every support statement, is relative to.

    `temperature` divides the logits; `top_k` (0: off), `top_p` (1: off) and `min_p` (None: off) truncate. The
    defaults draw from the model itself, which is the only setting whose samples follow the policy of F.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None

    @property
    def truncates(self) -> bool:
        """Whether some tokens are cut off, so that the sampler is not the (tempered) policy."""
        return self.top_p < 1.0 or self.top_k > 0 or bool(self.min_p)

    def warpers(self) -> LogitsProcessorList:
        """The same processors, in the same order, as `generate` applies."""
        chain = LogitsProcessorList()
        if self.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k > 0:
            chain.append(TopKLogitsWarper(top_k=self.top_k))
        if self.top_p < 1.0:
            chain.append(TopPLogitsWarper(top_p=self.top_p))
        if self.min_p:
            chain.append(MinPLogitsWarper(min_p=self.min_p))
        return chain
