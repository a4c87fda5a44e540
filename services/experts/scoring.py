"""The forward passes of a batch: each image and each prompt once, responses as branches of their prompt, no padding.

What was computed of images and prompts, and which score a text got, is remembered as long as the weights are the same:
new weights come with a new ``PrefixScorer``. One thread calls it.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from prism.model.expert import ExpertModel
from prism.model.inputs import Example
from prism.model.shared_prefix import PackedLayout, Prefix, prompt_positions
from prism.services.experts import metrics

KNOWN_SCORES = 65_536  # texts whose score is remembered: the same text gets the same score, bit for bit


@dataclass
class Branches:
    """Responses to one prompt that share a batch."""

    prompt: Example
    key: str
    """Equal keys mean equal prompts, images included."""
    image_keys: tuple[str, ...]
    responses: list[tuple[int, ...]] = field(default_factory=list)


@dataclass(frozen=True)
class ImageStates:
    embeds: Tensor
    """[tokens, H]"""
    deepstack: tuple[Tensor, ...]
    """One [tokens, H] for each layer that vision features are added to."""


class PrefixScorer:
    """Scores of responses by one version of one expert; the caches hold ``cache_tokens`` each at most."""

    def __init__(self, name: str, model: ExpertModel, image_token_id: int, *, cache_tokens: int) -> None:
        self.model, self._name, self._image_token_id = model, name, image_token_id
        self._device = model.score.weight.device
        self._prefixes: LRUCache[str, Prefix] = LRUCache(cache_tokens, getsizeof=lambda prefix: prefix.tokens)
        self._images: LRUCache[str, ImageStates] = LRUCache(cache_tokens, getsizeof=lambda image: len(image.embeds))
        self._known: LRUCache[bytes, float] = LRUCache(KNOWN_SCORES)

    @torch.inference_mode()
    def score(self, batch: Sequence[Branches]) -> list[list[float]]:
        """A score for each response of each entry, in order. Keys of the entries differ."""
        scores: list[dict[tuple[int, ...], float]] = []
        todo: list[tuple[Branches, list[tuple[int, ...]]]] = []
        for entry in batch:
            texts = dict.fromkeys(entry.responses)
            known = {text: score for text in texts if (score := self._known.get(_name(entry, text))) is not None}
            scores.append(known)
            if new := [text for text in texts if text not in known]:
                todo.append((entry, new))
        metrics.KNOWN_SCORES.labels(self._name).inc(sum(map(len, scores)))
        if todo:
            with self.model.computing():
                prefixes = self._prefixes_of([entry for entry, _ in todo])
                fresh = self._branch_scores(prefixes, [texts for _, texts in todo])
            names = [_name(entry, text) for entry, texts in todo for text in texts]
            computed = dict(zip(names, fresh, strict=True))
            self._known.update(computed)
            for entry, known in zip(batch, scores, strict=True):
                known |= {text: computed[_name(entry, text)] for text in entry.responses if text not in known}
        return [[known[text] for text in entry.responses] for entry, known in zip(batch, scores, strict=True)]

    def _prefixes_of(self, entries: Sequence[Branches]) -> list[Prefix]:
        """Each prompt's prefix, computed in one packed pass where it is not remembered."""
        found = {entry.key: self._prefixes.get(entry.key) for entry in entries}
        missing = [entry for entry in entries if found[entry.key] is None]
        metrics.PREFIXES.labels(self._name, "remembered").inc(len(entries) - len(missing))
        metrics.PREFIXES.labels(self._name, "computed").inc(len(missing))
        if missing:
            for entry, prefix in zip(missing, self._compute_prefixes(missing), strict=True):
                found[entry.key] = prefix
                if prefix.tokens <= self._prefixes.maxsize:
                    self._prefixes[entry.key] = prefix
        return [prefix for prefix in found.values() if prefix]

    def _compute_prefixes(self, entries: Sequence[Branches]) -> list[Prefix]:
        backbone = self.model.model
        lengths = [len(entry.prompt.input_ids) for entry in entries]
        row = torch.tensor([[token for entry in entries for token in entry.prompt.input_ids]])
        at = row == self._image_token_id  # [1, T]: where image tokens stand
        positions = [
            prompt_positions(backbone, ids, is_image, entry.prompt.image_grid_thw)
            for entry, ids, is_image in zip(entries, row.split(lengths, 1), at.split(lengths, 1), strict=True)
        ]
        prefixes = [Prefix(length, int(taken.max()) + 1) for length, taken in zip(lengths, positions, strict=True)]
        at = at.to(self._device)
        embeds = backbone.get_input_embeddings()(row.to(self._device))  # [1, T, H]
        images = self._images_of(entries)
        vision: dict[str, Any] = {}
        if images:
            embeds = embeds.masked_scatter(at[..., None], torch.cat([image.embeds for image in images]))
            layers = zip(*(image.deepstack for image in images), strict=True)
            vision = {"visual_pos_masks": at, "deepstack_visual_embeds": [torch.cat(layer) for layer in layers]}
        self._run(
            embeds,
            torch.cat(positions, -1).to(self._device),
            PackedLayout(lengths, prefixes=prefixes, device=self._device),
            **vision,
        )
        return prefixes

    def _branch_scores(self, prefixes: Sequence[Prefix], texts: Sequence[Sequence[tuple[int, ...]]]) -> list[float]:
        lengths = [len(text) for branches in texts for text in branches]
        row = torch.tensor([[token for branches in texts for text in branches for token in text]])  # [1, T]
        position = [
            torch.arange(prefix.next_position, prefix.next_position + len(text))
            for prefix, branches in zip(prefixes, texts, strict=True)
            for text in branches
        ]
        states = self._run(
            self.model.model.get_input_embeddings()(row.to(self._device)),
            torch.cat(position).to(self._device).expand(3, 1, -1),
            PackedLayout(
                lengths,
                prefixes=prefixes,
                branches=[len(branches) for branches in texts],
                device=self._device,
            ),
        )
        last = torch.tensor(lengths).cumsum(0) - 1
        return self.model.read(states[0, last.to(self._device)]).tolist()

    def _run(self, embeds: Tensor, positions: Tensor, layout: PackedLayout, **vision: Any) -> Tensor:
        """What the layers make of a packed row [1, T, H]; positions [3, 1, T]."""
        metrics.TOKENS.labels(self._name).inc(embeds.shape[1])
        with self.model.before_norm() as states:
            self.model.model.language_model(
                inputs_embeds=embeds, position_ids=positions, use_cache=False, layout=layout, **vision
            )
        return states[0]

    def _images_of(self, entries: Sequence[Branches]) -> list[ImageStates]:
        """The images of all prompts in their order; the vision tower sees those that are not remembered, each once."""
        found: dict[str, ImageStates | None] = {}
        pixels: list[Tensor] = []
        grids: list[Tensor] = []
        new: list[str] = []
        for entry in entries:
            grid, values = entry.prompt.image_grid_thw, entry.prompt.pixel_values
            if grid is None or values is None:
                continue
            for key, size, patches in zip(entry.image_keys, grid, values.split(grid.prod(-1).tolist()), strict=True):
                if key in found:
                    continue
                found[key] = self._images.get(key)
                if found[key] is None:
                    new.append(key)
                    grids.append(size)
                    pixels.append(patches)
        if new:
            vision = self.model.model.get_image_features(
                torch.cat(pixels).to(self._device), torch.stack(grids).to(self._device), return_dict=True
            )
            sizes = [len(image) for image in vision.pooler_output]
            dtype = self.model.score.weight.dtype
            deepstack = zip(*(layer.to(dtype).split(sizes) for layer in vision.deepstack_features), strict=True)
            for key, embeds, layers in zip(new, vision.pooler_output, deepstack, strict=True):
                found[key] = states = ImageStates(embeds.to(dtype).clone(), tuple(layer.clone() for layer in layers))
                if len(states.embeds) <= self._images.maxsize:
                    self._images[key] = states
        every = [found[key] for entry in entries if entry.prompt.image_grid_thw is not None for key in entry.image_keys]
        return [image for image in every if image]


def _name(entry: Branches, text: tuple[int, ...]) -> bytes:
    """Of a text after its prompt: shorter than the text, of which many are remembered."""
    return hashlib.sha256(entry.key.encode() + array("q", text).tobytes()).digest()
