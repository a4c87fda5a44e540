"""Experts as adapters over one base in memory: each version of each is a few megabytes beside it."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from prism.errors import ConfigError, WeightsError
from prism.model.adapters.layers import activator, adapter_parameters, base_name, install, mixtures_of, remove
from prism.model.adapters.merging import HEAD, Adapter
from prism.model.expert import ExpertModel, expert_over
from prism.wire.weights import WeightFile, known_sha256


class Base:
    """A frozen model, and the experts over it, of which one computes at a time, or the model itself. Thread-safe."""

    def __init__(self, model: ExpertModel) -> None:
        self.model = model.requires_grad_(False)
        self._turn = threading.RLock()
        self._made = 0
        self._activate = activator(model)
        model.computing = self._computing(None)

    def expert(self, adapter: Adapter) -> ExpertModel:
        """The expert of this adapter and its head. Raises WeightsError for an adapter that does not fit."""
        with self._turn, torch.no_grad():
            self._made += 1
            name = f"v{self._made}"
            try:
                expert = self._made_expert(name, adapter)
            except BaseException:
                remove(self.model, name)
                raise
            finally:
                self._activate = activator(self.model)
            expert.computing = self._computing(name)
            return expert

    def retire(self, expert: ExpertModel) -> None:
        """Forget an expert that was made here and does not compute any more."""
        if expert.adapter:
            with self._turn:
                remove(self.model, expert.adapter)

    def parameters_of(self, expert: ExpertModel) -> int:
        """Numbers in an expert over this model: its own adapter's among them, no other's."""
        with self._turn:
            own = adapter_parameters(expert, expert.adapter).values() if expert.adapter else ()
            shared = (each for name, each in expert.named_parameters() if base_name(name))
            return sum(each.numel() for each in (*shared, *own))

    def _computing(self, name: str | None) -> Callable[[], AbstractContextManager[None]]:
        @contextmanager
        def computing() -> Iterator[None]:
            with self._turn:
                self._activate(name)
                yield

        return computing

    def _made_expert(self, name: str, adapter: Adapter) -> ExpertModel:
        config = adapter.config
        settings = {key: config[key] for key in ("r", "lora_alpha", "target_modules")}
        try:
            install(self.model, name, settings, config.get("mixture"))
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"this adapter does not fit the model: {str(error)[:500]}") from None
        expert = expert_over(self.model)
        expert.adapter, expert.adapter_mixtures = name, mixtures_of(self.model, name)
        targets = dict(adapter_parameters(self.model, name)) | {HEAD: expert.score.weight}
        given = {key: tuple(tensor.shape) for key, tensor in adapter.tensors.items()}
        wanted = {key: tuple(tensor.shape) for key, tensor in targets.items()}
        if wrong := sorted(key for key in given | wanted if given.get(key) != wanted.get(key)):
            raise WeightsError(f"{', '.join(wrong)[:500]}: these are not the tensors of such an adapter")
        for key, target in targets.items():
            target.copy_(adapter.tensors[key])
        return expert.requires_grad_(False).eval()


class Bases:
    """Those of a process, by the files that they were loaded from: experts of one base share it."""

    def __init__(self) -> None:
        self._held: WeakValueDictionary[frozenset[tuple[str, str]], Base] = WeakValueDictionary()
        self._started: WeakValueDictionary[Path, Base] = WeakValueDictionary()
        self._loading = threading.Lock()

    def started(self, folder: Path, load: Callable[[], ExpertModel]) -> Base:
        """The base that experts of this process start as; loaded once, however many they are."""
        with self._loading:
            if (held := self._started.get(folder)) is None:
                held = self._started[folder] = Base(load())
            return held

    def of(
        self, files: Mapping[str, WeightFile], load: Callable[[], ExpertModel], there: Base, folder: Path | None
    ) -> Base:
        """The base of these files: one that is held; the one that is ``there``, if the ``folder`` that it was loaded
        from holds the same; or of what ``load`` gives."""
        key = frozenset((name, file.sha256) for name, file in files.items() if name.endswith(".safetensors"))
        with self._loading:
            if (held := self._held.get(key)) is not None:
                return held
            base = self._held[key] = there if folder and _hashes(folder) == key else Base(load())
            return base


def _hashes(folder: Path) -> frozenset[tuple[str, str]]:
    return frozenset((file.name, known_sha256(file)) for file in folder.glob("*.safetensors"))
