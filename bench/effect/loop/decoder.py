"""Many responses at once, a token of each a step. On a GPU a step, from token to token, is one CUDA graph.

transformers' ``generate`` took some 25 ms a token at the study's size on an H200, for whatever number of rows. What it
computes, this does: transformers' own layers, over keys and values that lie where they are from the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

LOOK_EVERY = 16  # steps, after which it is seen whether all have ended: a look waits for the card
MULTIPLE = 32  # of which prompts' lengths are padded to one, so that few graphs serve all batches


@dataclass(frozen=True)
class Decoded:
    """Of R rows."""

    tokens: Tensor
    """[R, steps]; what stands after a row's end means nothing."""
    logprobs: Tensor
    """[R, steps] of each token, under the distribution that it was drawn from."""


class Decoder:
    """``model``: transformers' Qwen3-VL in eval mode. ``never``: tokens that are not sampled. ``end``: a response's
    last token."""

    def __init__(self, model: Any, never: Sequence[int], end: int) -> None:
        self._model, self._end = model, end
        self._never = torch.tensor(list(never), device=model.device)
        self._slots: dict[tuple[int, int, int, bool], _Slots] = {}

    @torch.no_grad()
    def decode(self, batch: dict[str, Tensor], n: int, *, limit: int, temperature: float) -> Decoded:
        """n responses of at most ``limit`` tokens to each prompt of a batch, which is padded on the left and lies on
        the CPU: rows of one prompt stand together. At temperature 0 the likeliest token is taken."""
        device, backbone = self._model.device, self._model.model
        batch = _lengthened(batch)
        ids, held = batch["input_ids"], batch["attention_mask"]
        positions, _ = backbone.get_rope_index(
            ids, batch["mm_token_type_ids"], image_grid_thw=batch.get("image_grid_thw"), attention_mask=held
        )
        cache: Any = DynamicCache()
        states = backbone(
            input_ids=ids.to(device),
            attention_mask=held.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            **{name: batch[name].to(device) for name in ("pixel_values", "image_grid_thw") if name in batch},
        ).last_hidden_state[:, -1]
        key = (len(ids) * n, ids.shape[1], limit, temperature > 0)
        if key not in self._slots:
            self._slots[key] = _Slots(self._model, key[0], ids.shape[1], limit, self._chooser(temperature > 0))
        slots = self._slots[key]
        slots.begin(
            [(layer.keys, layer.values) for layer in cache.layers],
            held.to(device),
            positions.amax(dim=(0, 2)).to(device),
            states,
            n,
            temperature,
        )
        steps = 1
        while steps < limit:
            until = min(limit, steps + LOOK_EVERY)
            for _ in range(steps, until):
                slots.step()
            steps = until
            if bool((slots.tokens[:, :steps] == self._end).any(1).all()):
                break
        return Decoded(slots.tokens[:, :steps].clone(), slots.logprobs[:, :steps].clone())

    def _chooser(self, drawn: bool) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        def choose(states: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
            """The next token [R, 1] and its log-probability [R, 1] after these states [R, H]."""
            logits = self._model.lm_head(states).float().index_fill(1, self._never, -torch.inf)
            logprobs = (logits / temperature if drawn else logits).log_softmax(-1)
            # torch.multinomial's own race; itself it cannot stand in a graph
            race = logprobs.exp() / torch.empty_like(logprobs).exponential_() if drawn else logprobs
            token = race.argmax(-1, keepdim=True)
            return token, logprobs.gather(-1, token)

        return choose


class _Slots:
    """The memory of R rows of at most ``prompt`` and ``limit`` tokens, and the step that fills it."""

    def __init__(self, model: Any, rows: int, prompt: int, limit: int, choose: Callable[..., Any]) -> None:
        config, device, dtype = model.config.get_text_config(), model.device, model.dtype
        self._model, self._choose, self._prompt = model, choose, prompt
        length = -(-(prompt + limit) // MULTIPLE) * MULTIPLE
        shape = (rows, config.num_key_value_heads, length, config.head_dim)
        self._keys, self._values = (
            [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_hidden_layers)] for _ in range(2)
        )
        self._seen = torch.zeros(rows, 1, 1, length, dtype=torch.bool, device=device)
        self._token = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self._position = torch.zeros(rows, 1, dtype=torch.long, device=device)  # of the token, along all three axes
        # Where its keys and values come to stand; to begin with, where a first step is at home.
        self._place = torch.full((1,), prompt - 1, device=device)
        self._temperature = torch.ones((), device=device)
        self.tokens = torch.zeros(rows, limit, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(rows, limit, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            beside = torch.cuda.Stream()
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # lazily made handles and the like must be there before
                self._one()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._one()
            self._graph = graph
        else:
            self._one()  # as there, so that what begins finds the same

    def begin(
        self,
        cached: Sequence[tuple[Tensor, Tensor]],
        held: Tensor,
        last: Tensor,
        states: Tensor,
        n: int,
        temperature: float,
    ) -> None:
        """Each prompt's keys and values (by layer), mask, last position and last state, n times; draws the first
        tokens."""
        for own, (keys, values) in enumerate(cached):
            self._keys[own][:, :, : self._prompt] = keys.repeat_interleave(n, 0)
            self._values[own][:, :, : self._prompt] = values.repeat_interleave(n, 0)
        self._seen.zero_()
        self._seen[:, 0, 0, : self._prompt] = held.bool().repeat_interleave(n, 0)
        self._position.copy_(last.repeat_interleave(n)[:, None])
        self._place.fill_(self._prompt - 1)
        self._temperature.fill_(temperature or 1.0)
        self._take(states.repeat_interleave(n, 0))

    def step(self) -> None:
        if self._graph is None:
            self._one()
        else:
            self._graph.replay()

    def _one(self) -> None:
        self._seen.index_fill_(3, self._place, True)
        language = self._model.model.language_model
        states = language(
            inputs_embeds=language.embed_tokens(self._token),
            position_ids=self._position.expand(3, -1, -1),
            attention_mask=self._seen,
            past_key_values=self,
            use_cache=False,
        ).last_hidden_state[:, -1]
        self._take(states)

    def _take(self, states: Tensor) -> None:
        """Draw after these states [R, H]; what was drawn is the token of the next step."""
        token, logprob = self._choose(states, self._temperature)
        self._token.copy_(token)
        self._position.add_(1)
        self._place.add_(1)
        self.tokens.index_copy_(1, self._place - self._prompt, token)
        self.logprobs.index_copy_(1, self._place - self._prompt, logprob)

    # What transformers' layers ask of a cache:

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self._keys[layer].index_copy_(2, self._place, keys)
        self._values[layer].index_copy_(2, self._place, values)
        return self._keys[layer], self._values[layer]

    def get_seq_length(self, *_: Any) -> int:
        return 0


def _lengthened(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Its rows with more padding on the left, up to a multiple."""
    more = -batch["input_ids"].shape[1] % MULTIPLE
    rows = ("input_ids", "attention_mask", "mm_token_type_ids")
    return batch | {name: torch.nn.functional.pad(batch[name], (more, 0)) for name in rows}
