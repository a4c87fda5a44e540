"""An expert of the discriminator: a Qwen3-VL, dense or mixture-of-experts, with one scalar read at the last token.

Folders written here are ordinary Hugging Face folders: the backbone's own tensor names and layout, plus
``score.weight``. Any Qwen3-VL is a starting point, and whatever serves a Qwen3-VL with a classification head serves an
expert. Method: arXiv 2604.28123, section on the discriminator; sparse upcycling: arXiv 2212.05055.
"""

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from prism.errors import ConfigError, WeightsError
from prism.model import torchvision_cpu
from prism.model.adapters.mixture import AdapterMixture, kept_logits
from prism.model.folder import complete_folder
from prism.model.inputs import InputBuilder
from prism.model.packing import Batch, run_backbone
from prism.model.shared_prefix import ATTENTION

torchvision_cpu.install()

from transformers import (  # noqa: E402  (torchvision must find its operators declared)
    AutoConfig,
    Qwen3VLConfig,
    Qwen3VLModel,
    Qwen3VLMoeConfig,
    Qwen3VLMoeModel,
    Qwen3VLMoePreTrainedModel,
    Qwen3VLPreTrainedModel,
)
from transformers.initialization import no_init_weights  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

HEADS = ("score.weight", "v_head.1.weight")
"""Names of a head [1, H] in a folder's files: ours, and that of the published discriminator."""
HEAD_STD = 0.02
ROUTER_STD = 0.02
_MAKING = threading.RLock()
"""Held while transformers makes a model: meanwhile it sets torch's default dtype, for all threads. Two at a time would
make parameters in each other's, and leave one of them behind as the default."""
# Whatever serves such a folder goes by this name; ours would be unknown to it.
ARCHITECTURES = {
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
}


@dataclass(frozen=True)
class ExpertOutput:
    scores: torch.Tensor
    """[N] in float32."""
    router_logits: tuple[torch.Tensor, ...]
    """One [T, experts] for each mixture-of-experts layer; empty if dense or not asked for."""


class ExpertModel(nn.Module):
    """Raw Bradley-Terry scores: only differences between responses to one prompt mean something.

    ``load_expert`` and ``upcycle`` make one; it is one of the two transformers models below.
    """

    config: Any
    model: Any
    score: nn.Linear
    dropout: nn.Dropout

    def forward(self, batch: Batch) -> torch.Tensor:
        """Scores [N] in float32."""
        return self.judge(batch).scores

    def judge(self, batch: Batch, *, router_logits: bool = False) -> ExpertOutput:
        """Scores, and what the routers said about every token if asked for."""
        own = router_logits and not self.adapter_mixtures and self.mixture is not None
        options = {"output_router_logits": True} if own else {}
        with kept_logits(self.adapter_mixtures if router_logits else []), self.before_norm() as states:
            out = run_backbone(self.model, batch, **options)
            kept = tuple(mixture.logits for mixture in self.adapter_mixtures if mixture.logits is not None)
        return ExpertOutput(self.read(states[0][0, batch.ends]), tuple(out.router_logits) if own else kept)

    @contextmanager
    def before_norm(self) -> Iterator[list[torch.Tensor]]:
        """What the layers made of each row [1, T, H] that goes through the language model meanwhile: what its last norm
        is given."""
        states: list[torch.Tensor] = []
        norm = self.model.language_model.norm
        handle = norm.register_forward_pre_hook(lambda _, given: states.append(given[0]))
        try:
            yield states
        finally:
            handle.remove()

    def read(self, last: torch.Tensor) -> torch.Tensor:
        """``before_norm``'s states at last tokens [N, H] -> scores [N] in float32.

        The last norm and the head are computed in float32, whatever the layers are: a bfloat16 has 8 bits, so scores
        that differ by less than 0.4 % would be the same or, in another batch, the other way round.
        """
        last = self.model.language_model.norm(last.float())
        return F.linear(self.dropout(last), self.score.weight.float()).squeeze(-1)

    @property
    def mixture(self) -> tuple[int, int] | None:
        """(experts of each layer, experts a token is sent to); None if dense."""
        if self.adapter_mixtures:
            return self.adapter_mixtures[0].experts, self.adapter_mixtures[0].top_k
        text = self.config.text_config
        return (text.num_experts, text.num_experts_per_tok) if self.config.model_type == "qwen3_vl_moe" else None

    def _add_head(self, backbone: Any, config: Any) -> None:
        self.model = backbone
        self.adapter_mixtures: list[AdapterMixture] = []
        """Where its MLPs are mixtures of adapters; plain attributes, whose parameters are the backbone's."""
        self.adapter: str | None = None
        """The name of its adapter, if it is one over a backbone that others share."""
        self.computing: Callable[[], AbstractContextManager[Any]] = nullcontext
        """In which it computes, where its backbone computes for others too."""
        self.dropout = nn.Dropout(0.0)
        config.num_labels = config.text_config.num_labels = 1  # for servers that size the head by it
        self.score = nn.Linear(config.text_config.hidden_size, 1, bias=False)


class DenseExpert(ExpertModel, Qwen3VLPreTrainedModel):
    def __init__(self, config: Qwen3VLConfig, backbone: Any = None) -> None:
        Qwen3VLPreTrainedModel.__init__(self, config)
        self._add_head(Qwen3VLModel(config) if backbone is None else backbone, config)
        self.post_init()


class MixtureExpert(ExpertModel, Qwen3VLMoePreTrainedModel):
    def __init__(self, config: Qwen3VLMoeConfig, backbone: Any = None) -> None:
        Qwen3VLMoePreTrainedModel.__init__(self, config)
        self._add_head(Qwen3VLMoeModel(config) if backbone is None else backbone, config)
        self.post_init()


CLASSES: dict[str, Any] = {"qwen3_vl": DenseExpert, "qwen3_vl_moe": MixtureExpert}


def refuse_other_family(model_type: str, folder: Path | str) -> None:
    """Raises ConfigError for a model that can be neither policy nor expert."""
    if model_type not in CLASSES:
        raise ConfigError(
            f"{folder} is a {model_type}: policy and experts start from a {' or a '.join(CLASSES)} (Qwen3-VL, dense or "
            "a mixture of experts)"
        )


def load_expert(
    folder: Path | str,
    *,
    seed: int = 0,
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    strict: bool = False,
) -> ExpertModel:
    """An expert from a folder written by ``save_expert``, the published discriminator's, or from a policy with a new
    head, N(0, 0.02) by ``seed``.

    ``strict`` refuses a folder that lacks a tensor of the expert, its head included, or holds one too many. Raises
    ConfigError if there is no model that can be an expert, WeightsError if its files do not hold one.
    """
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no model can be loaded from {folder}: {str(error)[:500]}") from None
    refuse_other_family(config.model_type, folder)
    kind = CLASSES[config.model_type]
    try:
        with _MAKING, _quiet():
            expert, loading = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                attn_implementation=ATTENTION,
                output_loading_info=True,
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"the weights in {folder} cannot be loaded: {str(error)[:500]}") from None
    missing = set(loading["missing_keys"])
    wrong = {"lacks": missing, "has other shapes of": {str(key[0]) for key in loading["mismatched_keys"]}}
    if strict:
        wrong["holds, beside the expert's own,"] = set(loading["unexpected_keys"])
    else:
        missing.discard("score.weight")
    for verb, names in wrong.items():
        if names:
            raise WeightsError(f"{folder} {verb} {', '.join(sorted(names))[:500]}: these are not an expert's weights")
    if "score.weight" in loading["missing_keys"]:
        if (held := find_head(folder)) is None:
            _new_head(expert, seed)
        else:
            _read_head(expert, *held)
    expert.dropout.p = dropout
    return expert


def find_head(folder: Path | str) -> tuple[Path, str] | None:
    """The file and the name of the head that a folder holds; None for a policy's, which has none.

    Raises WeightsError for a file that cannot be read.
    """
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            with safe_open(file, "pt") as tensors:
                names = set(tensors.keys())
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{file} cannot be read: {str(error)[:500]}") from None
        for name in HEADS:
            if name in names:
                return file, name
    return None


def _read_head(expert: ExpertModel, file: Path, name: str) -> None:
    with safe_open(file, "pt") as tensors:
        head = tensors.get_tensor(name)
    if head.shape != expert.score.weight.shape:
        shape, wanted = list(head.shape), list(expert.score.weight.shape)
        raise WeightsError(f"{file}: the head {name} is {shape}, not {wanted}: these are not an expert's weights")
    with torch.no_grad():
        expert.score.weight.copy_(head)


def expert_over(model: Any, *, seed: int = 0, dropout: float = 0.0) -> ExpertModel:
    """An expert over the very backbone of ``model``, a policy or an expert: only its head is its own, another expert's
    copied or new by ``seed``."""
    kind = CLASSES[model.config.model_type]
    with _MAKING, no_init_weights():
        expert = kind._from_config(
            copy.deepcopy(model.config), dtype=model.dtype, attn_implementation=ATTENTION, backbone=model.model
        )
    if isinstance(model, ExpertModel):
        expert.score.load_state_dict(model.score.state_dict())
    else:
        _new_head(expert, seed)
    expert.dropout.p = dropout
    return expert.to(model.device)


def unfilled_expert(config: str, like: ExpertModel) -> ExpertModel:
    """The expert of this ``config.json``, where and in the precision that ``like`` computes in; what its weights hold
    is nobody's. What is computed of a configuration it has from ``like``, where both turn positions alike.

    Raises WeightsError for a configuration that is no expert's.
    """
    try:
        values = json.loads(config)
        of_type = AutoConfig.for_model(**values)
        kind = CLASSES[of_type.model_type]
        device, dtype = like.score.weight.device, like.score.weight.dtype
        with _MAKING, torch.device(device), no_init_weights():
            expert: Any = kind._from_config(of_type, dtype=dtype, attn_implementation=ATTENTION)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"this is no expert's configuration: {str(error)[:500]}") from None
    computed = dict(like.named_buffers()) if _rope(expert) == _rope(like) else {}
    for name, buffer in expert.named_buffers():
        if name in computed and computed[name].shape == buffer.shape:
            buffer.copy_(computed[name])
    return place(expert, str(device)).requires_grad_(False).eval()


def _rope(expert: ExpertModel) -> Any:
    """What its rotary frequencies are computed of."""
    return expert.config.text_config.rope_parameters


def place(expert: ExpertModel, device: str, *, move: bool = True) -> ExpertModel:
    """Move an expert to where it works, and compute its mixtures the way that is fastest there.

    On a GPU that is one grouped matrix product for all experts of a layer. On a CPU torch's grouped product is 1.4 to
    1.7 times slower, there and back, than transformers' own way, which gathers each expert's tokens.
    """
    compute_mixtures(expert, device)
    return expert.to(device) if move else expert


def compute_mixtures(model: Any, device: str) -> None:
    """Of a policy or an expert: as ``place``."""
    if model.config.model_type == "qwen3_vl_moe":
        model.model.set_experts_implementation("eager" if torch.device(device).type == "cpu" else "grouped_mm")


def save_expert(
    expert: ExpertModel, folder: Path, inputs: InputBuilder, weights: dict[str, torch.Tensor] | None = None
) -> None:
    """Write the expert as a folder, with the processor its inputs were built by. ``weights``: where it is sharded."""
    model: Any = expert
    model.save_pretrained(folder, state_dict=weights)
    file = folder / "config.json"
    config = json.loads(file.read_text()) | {"architectures": [ARCHITECTURES[expert.config.model_type]]}
    file.write_text(json.dumps(config, indent=2) + "\n")
    complete_folder(folder, inputs.start, inputs.processor, inputs.pixel_bounds)


@torch.no_grad()
def upcycle(
    folder: Path | str,
    *,
    experts: int = 4,
    top_k: int = 2,
    noise: float = 0.01,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> ExpertModel:
    """A mixture-of-experts expert from a dense Qwen3-VL: each MLP becomes ``experts`` copies of itself plus
    N(0, ``noise``), of which a new router, N(0, 0.02), picks ``top_k`` for each token and weighs them to sum to 1.

    Without noise it computes what the dense model does, whatever the router says. Raises ConfigError for a model that
    is no dense Qwen3-VL, WeightsError for files that do not hold it.
    """
    dense = load_expert(folder, seed=seed, dtype=dtype)
    if dense.mixture:
        raise ConfigError(f"{folder} is a mixture of experts already: upcycling starts from a dense Qwen3-VL")
    if not 1 <= top_k <= experts:
        raise ConfigError(f"top_k = {top_k}: a token goes to 1 to {experts} of {experts} experts")
    with _MAKING, no_init_weights():  # all of them are set below
        mixture: Any = MixtureExpert._from_config(
            mixture_config(dense.config, experts, top_k), dtype=dtype, attn_implementation=ATTENTION
        )
    random = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size, std: float) -> torch.Tensor:
        drawn = torch.randn(shape, generator=random) if std else torch.zeros(shape)
        return (drawn * std).to(dtype)

    tensors = dense.state_dict()
    for index, layer in enumerate(mixture.model.language_model.layers):
        name = f"model.language_model.layers.{index}.mlp"
        gate, up, down = (tensors.pop(f"{name}.{part}_proj.weight") for part in ("gate", "up", "down"))
        for key, dense_weight in (("gate_up_proj", torch.cat([gate, up])), ("down_proj", down)):
            shape = getattr(layer.mlp.experts, key).shape  # [experts, out, in]
            tensors[f"{name}.experts.{key}"] = dense_weight.expand(shape) + normal(shape, noise)
        tensors[f"{name}.gate.weight"] = normal(layer.mlp.gate.weight.shape, ROUTER_STD)
    mixture.load_state_dict(tensors)
    return mixture


def mixture_config(dense: Any, experts: int, top_k: int) -> Qwen3VLMoeConfig:
    """Of the mixture that a dense Qwen3-VL becomes."""
    whole = {name: value for name, value in dense.to_dict().items() if name not in ("model_type", "architectures")}
    text, vision = dict(whole.pop("text_config")), dict(whole.pop("vision_config"))
    for part in (text, vision):
        part.pop("model_type", None)
    text |= {
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": text["intermediate_size"],
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **whole)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's report on the head that a policy does not have: what is missing is looked at here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def _new_head(expert: ExpertModel, seed: int) -> None:
    drawn = torch.randn(expert.score.weight.shape, generator=torch.Generator().manual_seed(seed)) * HEAD_STD
    with torch.no_grad():
        expert.score.weight.copy_(drawn)
