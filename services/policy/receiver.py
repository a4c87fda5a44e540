"""What vLLM's workers get beside their own methods (``--worker-extension-cls``): weights from a learner's memory.

They go through the same reload in place as a folder's, which takes an iterator as well.
"""

from typing import Any

from prism.model.broadcast import Receiver
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
        self.model_runner.reload_weights(weights_iterator=receiver.tensors())
