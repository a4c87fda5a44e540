"""What vLLM's workers get beside their own: weights from a learner's memory (``--worker-extension-cls``), and tokens
that are never sampled (``--logits-processors``).

Weights go through the same reload in place as a folder's, which takes an iterator as well; where a GPU has them as they
were loaded, straight through the model's own loader.
"""

from pathlib import Path
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from prism.model.adapters.merging import merged_tensors, read_adapter
from prism.model.broadcast import Receiver
from prism.model.control import vision_tokens
from prism.wire.weights import Broadcast


class BroadcastWorker:
    """Methods for ``/collective_rpc``, called in every worker of the server. Raise WeightsError."""

    # vLLM's own, of the class that this one becomes a base of
    device: Any
    rank: int
    parallel_config: Any
    model_runner: Any

    _receiver: Receiver | None = None

    def join_broadcast(self, broadcast: dict[str, Any], deadline: float) -> None:
        """Meet the learner, while the weights in memory are still whole. One that was met before is left."""
        if self._receiver is not None:
            self._receiver.close()
        count = self.parallel_config.world_size
        self._receiver = Receiver(Broadcast.model_validate(broadcast), self.device, self.rank, count, deadline)

    def load_broadcast(self) -> None:
        """Load what the learner sends into the model, in place."""
        assert self._receiver is not None
        receiver, self._receiver = self._receiver, None
        try:
            if self._is_as_loaded():
                self.model_runner.get_model().load_weights(receiver.tensors())
            else:
                self.model_runner.reload_weights(weights_iterator=receiver.tensors())
        finally:
            receiver.close()

    def load_merged(self, folder: str, over_same: bool) -> None:
        """Load a folder's model with its adapter merged, in place; what the adapter does not change is there already if
        it is ``over_same``, and stays where parameters can be loaded one by one."""
        adapter = read_adapter(Path(folder))
        as_loaded = self._is_as_loaded()
        tensors = merged_tensors(Path(folder), adapter, self.device, changed=over_same and as_loaded)
        if as_loaded:
            self.model_runner.get_model().load_weights(tensors)
        else:
            self.model_runner.reload_weights(weights_iterator=tensors)

    def tokens_made(self) -> dict[str, int]:
        """Of each request that is not finished and was begun, how many tokens were sampled. For a paused engine."""
        return {name: len(request.output_token_ids) for name, request in self.model_runner.requests.items()}

    def _is_as_loaded(self) -> bool:
        """Whether parameters lie as a checkpoint's tensors were loaded into them, so that more can be, at once. Not on
        CPUs, where they are packed for its matrix products, nor where they are quantised or of a mixture of experts."""
        config = self.model_runner.model_config
        return torch.device(self.device).type == "cuda" and config.quantization is None and not config.is_moe


class NoVisionTokens(LogitsProcessor):
    """Gives tokens that stand for a picture no chance in any request: no learner could place a response with one.

    Log-probabilities are then those over all other tokens, as the learner computes them.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        ids = vision_tokens(vllm_config.model_config.hf_config)
        self._ids = torch.tensor(ids, dtype=torch.long, device=device)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """[requests, vocabulary], changed in place."""
        return logits.index_fill_(-1, self._ids, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """All requests are alike."""
