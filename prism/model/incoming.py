"""An expert's weights from its learner's memory, into a model beside the one that goes on scoring meanwhile."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from prism.errors import ServiceError, WeightsError
from prism.model.broadcast import Receiver, check_backend
from prism.model.expert import ExpertModel, unfilled_expert
from prism.wire.weights import Broadcast


class IncomingExpert:
    """Two models take turns: the one that is replaced is filled by the broadcast after, if that is of its kind."""

    def __init__(self, deadline: float) -> None:
        """``deadline``: seconds for each tensor."""
        self._deadline = deadline
        self._spare: tuple[str, ExpertModel] | None = None  # and its configuration
        self._in_use: str | None = None  # configuration of the model that is, if it was broadcast

    def receive(
        self, broadcast: Broadcast, like: ExpertModel, refuse: Callable[[ExpertModel], None] = lambda model: None
    ) -> ExpertModel:
        """The learner's weights, where and in the precision that ``like``, the model in use, computes in.

        Raises WeightsError for weights that do not fit, as ``refuse`` does, ServiceError where the learner is lost: it
        may try again.
        """
        check_backend(broadcast, like.score.weight.device)
        if broadcast.config is None:
            raise WeightsError("these weights came without a configuration: they are not an expert's")
        spare, self._spare = self._spare, None
        model = spare[1] if spare and spare[0] == broadcast.config else None
        del spare  # before another is made: a card may hold two
        model = model or unfilled_expert(broadcast.config, like)
        refuse(model)
        targets = own_tensors(model)
        shapes = {name: list(tensor.shape) for name, tensor in targets.items()}
        offered = {each.name: each.shape for each in broadcast.tensors}
        if wrong := [name for name in offered | shapes if offered.get(name) != shapes.get(name)]:
            raise WeightsError(f"{', '.join(sorted(wrong))[:500]}: these are not the tensors of such an expert")
        device = like.score.weight.device
        stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
        try:
            receiver = Receiver(broadcast, device, 0, 1, self._deadline)
            try:
                with stream:  # or what is scored meanwhile would wait for it
                    receiver.into(targets)
            finally:
                receiver.close()
        except WeightsError as error:
            raise ServiceError(str(error)) from None
        return model

    def retire(self, model: ExpertModel, by: Broadcast | None) -> None:
        """``model`` is not used any more: weights that came ``by`` this broadcast, or by files, have replaced it."""
        config = by and by.config
        self._spare = (config, model) if config and config == self._in_use else None
        self._in_use = config


def own_tensors(model: ExpertModel) -> dict[str, torch.Tensor]:
    """By the names that learner and server share; of tied ones the first."""
    tied: Any = model.all_tied_weights_keys
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
