"""Decoding over a cache of fixed size by a compiled forward: CUDA graphs, on a GPU. Not yet run on a GPU."""

import importlib.util
import weakref

import torch
from torch import Tensor
from transformers.cache_utils import Cache, StaticLayer

from fe_posttrain.sequences.growing import Prefilled
from fe_posttrain.sequences.packed import one_token

LENGTHS = 128  # cache lengths are multiples of it, so that few are ever compiled
SMALLEST = 16  # rows; a batch is not halved to fewer
COMPILED = 64  # most shapes compiled; beyond them torch goes on uncompiled
SHARE = 8  # a cache beyond this part of a GPU's memory is left to the growing one, because it is kept


class _Layer(StaticLayer):
    """A StaticLayer whose keys and values (rows, heads, length, width) are the start of flat buffers."""

    def __init__(self, buffers: tuple[Tensor, Tensor], like: tuple[Tensor, Tensor], rows: int, length: int):
        super().__init__(max_cache_len=length)
        shapes = [(rows, x.shape[1], length, x.shape[3]) for x in like]
        self.keys, self.values = (
            x[: torch.Size(shape).numel()].view(shape) for x, shape in zip(buffers, shapes, strict=True)
        )
        self.dtype, self.device = self.keys.dtype, self.keys.device
        self.cumulative_length = torch.zeros((), dtype=torch.long, device=self.device)
        for x in (self.keys, self.values, self.cumulative_length):
            torch._dynamo.mark_static_address(x)
        self.is_initialized = True


class _Room:
    """What one model decodes with, from call to call: flat buffers, and the caches that share them.

    CUDA graphs hold the addresses they were recorded with, so the buffers stay: two a layer, as large as the largest
    call so far. A smaller batch or length takes their start.
    """

    def __init__(self, backend):
        self.backend = backend
        mode = {"mode": "reduce-overhead"} if backend == "inductor" else {}
        self.forward = torch.compile(_forward, backend=backend, dynamic=False, **mode)
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._caches: dict[tuple[int, int], Cache] = {}

    def cache(self, prefilled: Cache, rows: int, length: int) -> Cache:
        """The cache of so many rows and tokens, for keys and values such as the prefilled ones."""
        likes = [(layer.keys, layer.values) for layer in prefilled.layers]
        wanted = [[rows * x.shape[1] * length * x.shape[3] for x in like] for like in likes]
        pairs = [
            (held, x, n)
            for buffers, like, sizes in zip(self._buffers, likes, wanted, strict=False)
            for held, x, n in zip(buffers, like, sizes, strict=True)
        ]
        fits = pairs and all(
            held.numel() >= n and (held.dtype, held.device) == (x.dtype, x.device) for held, x, n in pairs
        )
        if not fits:
            self._caches.clear()
            self._buffers.clear()  # before the larger ones are made
            self._buffers += [
                tuple(x.new_empty(n) for x, n in zip(like, sizes, strict=True))
                for like, sizes in zip(likes, wanted, strict=True)
            ]
        if (rows, length) not in self._caches:
            layers = [_Layer(pair, like, rows, length) for pair, like in zip(self._buffers, likes, strict=True)]
            self._caches[rows, length] = Cache(layers=layers)
        return self._caches[rows, length]


_ROOMS: "weakref.WeakKeyDictionary[torch.nn.Module, _Room]" = weakref.WeakKeyDictionary()


def _forward(model, cache: Cache, drawn: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    out = model(input_ids=drawn, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True)
    return out.logits[:, -1]


def why_not(model, found: Prefilled, max_new_tokens: int) -> str | None:
    """Why `Static` cannot decode here; None where it can."""
    device, config = found.logits.device, model.config.get_text_config()
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return "it needs a CUDA device and Triton"
    if torch.cuda.get_device_capability(device) < (7, 0):  # the oldest that inductor compiles for
        return "this GPU is older than what torch compiles for"
    quantizer = getattr(model, "hf_quantizer", None)
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return "the model is spread over several devices"
    if not (quantizer is None or quantizer.is_compileable):
        return "the model's quantization does not compile"
    if not getattr(model, "_can_compile_fullgraph", False) or config._attn_implementation != "sdpa":
        return "the model does not compile as a whole, or attn_implementation is not sdpa"
    rows, length = len(found.owner), _length(found, max_new_tokens)
    kept = sum(
        rows * x.shape[1] * length * x.shape[3] * x.element_size()
        for layer in found.cache.layers
        for x in (layer.keys, layer.values)
    )
    if kept > torch.cuda.get_device_properties(device).total_memory / SHARE:
        return f"its cache, which is kept, would take {kept / 2**30:.1f} GiB, more than 1/{SHARE} of the GPU's memory"
    return None


def _length(found: Prefilled, max_new_tokens: int) -> int:
    tokens = found.cache.get_seq_length() + max_new_tokens
    return -(-tokens // LENGTHS) * LENGTHS


class Static:
    """Logits of the next token of every row, by a compiled forward over a cache of fixed size.

    Rows that have finished stay until half of the batch has; the rest goes on in a batch of half the size. Every
    pair of batch size and cache length is compiled once for a model in training mode and once in evaluation mode;
    weights may change in place between calls.

    Args:
        backend: of `torch.compile`; with "inductor" the forward becomes CUDA graphs on a GPU.
    """

    LOOKS = 8  # tokens between two looks at which rows run; each look waits for the GPU

    def __init__(self, model, found: Prefilled, max_new_tokens: int, *, backend="inductor", smallest: int = SMALLEST):
        self._model, self._smallest = model, smallest
        self._room = _ROOMS.get(model)
        if self._room is None or self._room.backend != backend:
            self._room = _ROOMS[model] = _Room(backend)
        rows, length = len(found.owner), _length(found, max_new_tokens)
        self._cache = self._room.cache(found.cache, rows, length)
        for prompts, layer in zip(found.cache.layers, self._cache.layers, strict=True):
            width = prompts.keys.shape[2]
            for fixed, known in ((layer.keys, prompts.keys), (layer.values, prompts.values)):
                fixed[:, :, :width] = known[found.owner]
                fixed[:, :, width:] = 0  # what stands here is masked, but a NaN would pass through
            layer.cumulative_length.fill_(width)
        self._mask = torch.ones(rows, length, dtype=torch.bool, device=found.logits.device)
        if found.mask is not None:
            self._mask[:, : found.mask.shape[1]] = found.mask.bool()
        self._lengths, self.logits = found.lengths, found.logits

    def size(self, running: int) -> int:
        """Rows to go on with when so many run: the batch, halved while they fit into half of it."""
        rows = len(self._lengths)
        while running <= rows // 2 and rows // 2 >= self._smallest:
            rows //= 2
        return rows

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone."""
        before = self._cache
        self._cache = self._room.cache(before, len(rows), self._mask.shape[1])
        for old, new in zip(before.layers, self._cache.layers, strict=True):
            new.keys.copy_(old.keys[rows])  # the two share memory; indexing copies
            new.values.copy_(old.values[rows])
            new.cumulative_length.copy_(old.cumulative_length)
        self._lengths, self._mask = self._lengths[rows], self._mask[rows]

    def next(self, drawn: Tensor) -> Tensor:
        """Logits (rows, V) after one more token (rows, 1); valid until the next call."""
        config = self._model.config.get_text_config()
        with torch._dynamo.config.patch(recompile_limit=COMPILED), one_token(config):
            logits = self._room.forward(self._model, self._cache, drawn, self._lengths, self._mask)
        self._lengths = self._lengths + 1
        return logits
