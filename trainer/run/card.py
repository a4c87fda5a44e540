"""The model card of an exported model: where it comes from and how it is loaded, from the run's own records alone."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prism.config import AlignConfig, RunConfig
from prism.evaluation.held_out import evaluated_stages
from prism.files import read_jsonl, write_text
from prism.trainer.run.result import stage_result
from prism.wire.weights import ADAPTER_CONFIG

STAGE_COLUMNS = ("stage", "kind", "steps", "policy version", "expert version")
DATA_COLUMNS = ("stage", "file", "rows used", "rows left out", "sha256")
NOT_MEASURED, NOT_RECORDED = "not measured", "not recorded"

LOAD_POLICY = """\
Any release of transformers from 4.57 on and stock vLLM (`vllm serve FOLDER`) load this folder:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
```
"""

LOAD_ADAPTER = """\
An adapter of PEFT's over `{base}`, which it needs:

```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

base = AutoModelForImageTextToText.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, ".")  # this folder
processor = AutoProcessor.from_pretrained("{base}")
```

Stock vLLM: `vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules NAME=FOLDER`.
"""

LOAD_EXPERT_ADAPTER = """\
An adapter of PEFT's over `{base}`, which it needs, and the head of a judge, `score.weight`, a scalar read at the last
token of a response's {section}. PRISM's own class has that head; `prism export` without `--adapter` writes the whole.

```python
from peft import PeftModel
from prism.model.expert import load_expert

expert = PeftModel.from_pretrained(load_expert("{base}"), ".")  # this folder
```
"""

LOAD_EXPERT = """\
This is a judge, not a generator: a Qwen3-VL backbone and one scalar, `score.weight`, read at the last token. It scores
the {section} of a response. A score is raw: only differences between responses to one prompt mean something. PRISM
serves it (`{variables}PRISM_MODEL=FOLDER prism serve {expert}`); with transformers alone:

```python
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "."  # this folder
backbone = AutoModelForImageTextToText.from_pretrained(folder).eval().model  # its head for text is not used
processor = AutoProcessor.from_pretrained(folder)
for file in Path(folder).glob("*.safetensors"):
    with safe_open(file, "pt") as tensors:
        if "score.weight" in tensors.keys():
            head = tensors.get_tensor("score.weight")

messages = [{{"role": "user", "content": [{{"type": "text", "text": "What is 2 + 2?"}}]}}]
response = "{response}"
text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(text=[text + response + processor.tokenizer.eos_token], return_tensors="pt")
with torch.no_grad():
    last = backbone(**inputs).last_hidden_state[0, -1]
score = (head.to(last.dtype) @ last).item()
print(score)
```
"""
SECTIONS = {
    "perception": ("caption", "<caption>- 2 and 2</caption>"),
    "reasoning": ("thought and answer", "<think>2 + 2 = 4</think><answer>4</answer>"),
}


def write_card(folder: Path, config: RunConfig, stage: str, model: str, said: str, record: dict[str, Any]) -> None:
    """Write ``README.md``. ``record`` is the stage's result or its checkpoint's state; ``said`` says which of both."""
    finished = stage_result(config, stage) is not None
    head = ["---", "library_name: transformers", "tags: [prism]"]
    head += ["pipeline_tag: image-text-to-text"] if model == "policy" else []
    start = _start(config, stage, model)
    head += [f"base_model: {start}"] if start.count("/") == 1 and not config.path(start).exists() else []
    title = f"The policy of {config.name}" if model == "policy" else f"The {model} expert of {config.name}"
    load = LOAD_POLICY
    if model != "policy":
        section, response = _shown(config, model)
        section += _also(config, stage)
        load = LOAD_EXPERT.format(section=section, response=response, expert=model, variables=_variables(config))
    if (file := folder / ADAPTER_CONFIG).is_file():
        adapter = json.loads(file.read_text())
        head[1] = "library_name: peft"
        load = LOAD_ADAPTER if model == "policy" else LOAD_EXPERT_ADAPTER
        section = "" if model == "policy" else _shown(config, model)[0] + _also(config, stage)
        load = load.format(base=adapter["base_model_name_or_path"], rank=adapter["r"], section=section)
    figures = _policy_figures(config, stage, finished) if model == "policy" else _expert_figures(config, stage, model)
    parts = [
        "\n".join([*head, "---"]),
        f"# {title}",
        f"Written by `prism export` of PRISM {_version('prism-align')} (transformers {_version('transformers')}, torch "
        f"{_version('torch')}) from the stage `{stage}` of the run `{config.name}`, {said}. It started from "
        f"`{start}`; that model's licence holds for this one too.",
        f"## Loading\n\n{load.rstrip()}",
        "## Stages\n\n" + _table(STAGE_COLUMNS, _stages(config, stage, record)),
        "## Data\n\n" + _table(DATA_COLUMNS, _data(config, stage, record)),
        "## Figures\n\n" + _table(("figure", "value"), figures),
    ]
    write_text(folder / "README.md", "\n\n".join(parts) + "\n")


def _shown(config: RunConfig, expert: str) -> tuple[str, str]:
    """What the expert judges of a response, in words and by an example."""
    limits = config.run_limits
    section, response = SECTIONS[expert]
    if limits.expert_section == "whole":
        section, response = "whole text", "".join(text for _, text in SECTIONS.values())
    return section if limits.expert_pictures else f"{section} (shown without the prompt's pictures)", response


def _also(config: RunConfig, stage: str) -> str:
    """Of a network that is both experts."""
    of_stage = config.stages[stage]
    shared = isinstance(of_stage, AlignConfig) and of_stage.experts.shared
    return " (it is one network with the other expert, whose section it judges as well, apart)" if shared else ""


def _variables(config: RunConfig) -> str:
    """With which a service shows the expert what it was trained on, where that is not what services show anyway."""
    limits = config.run_limits
    pictures = "" if limits.expert_pictures else "PRISM_EXPERT_PICTURES=false "
    return pictures + ("PRISM_EXPERT_SECTION=whole " if limits.expert_section == "whole" else "")


def _start(config: RunConfig, stage: str, model: str) -> str:
    """The model it was made of, as the configuration names it."""
    of_stage = config.stages[stage]
    named = of_stage.experts.start if isinstance(of_stage, AlignConfig) else None
    return config.model if model == "policy" or named is None else getattr(named, model)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its source
        return f"({NOT_RECORDED})"


def _up_to(config: RunConfig, stage: str, record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What is recorded of each stage that this model went through."""
    names = list(config.stages)
    before = names[: names.index(stage)]
    return {name: stage_result(config, name) or {} for name in before} | {stage: record}


def _stages(config: RunConfig, stage: str, record: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for name, known in _up_to(config, stage, record).items():
        experts = known.get("expert_version") or next(iter(known.get("expert_versions", {}).values()), None)
        policy = known.get("version", known.get("policy_version"))
        rows.append((name, config.stages[name].kind, known.get("steps", known.get("step")), policy, experts or "none"))
    return rows


def _data(config: RunConfig, stage: str, record: dict[str, Any]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for name, known in _up_to(config, stage, record).items():
        files = known.get("data") or [{}]
        rows += [(name, *(file.get(key) for key in ("file", "rows", "bad_rows", "sha256"))) for file in files]
    return rows


def _policy_figures(config: RunConfig, stage: str, finished: bool) -> list[tuple[str, str]]:
    """Of the held-out questions, which are asked once a stage is finished."""
    figures = evaluated_stages(config.run_dir).get(stage, {}) if finished else {}
    named = (("held-out questions", "questions"), ("of these judged", "judged"), ("accuracy", "accuracy"))
    named += (("its standard error", "accuracy_stderr"), ("format rate", "format_rate"), ("caption F1", "caption_f1"))
    return [(words, _figure(figures.get(key))) for words, key in named]


def _expert_figures(config: RunConfig, stage: str, expert: str) -> list[tuple[str, str]]:
    """Of its last step of training."""
    steps = [line for line in read_jsonl(config.run_dir / "metrics.jsonl") if line.get("stage") == stage]
    last = steps[-1] if steps else {}
    named = (("pairs of the last step won, of those that differ", "pair_accuracy"), ("ties among them", "tie_share"))
    named += (("mean gap to the teacher", "gap"),)
    return [(words, _figure(last.get(f"{expert}_{key}"))) for words, key in named]


def _figure(value: Any) -> str:
    return NOT_MEASURED if value is None else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)


def _table(names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    def line(cells: tuple[Any, ...]) -> str:
        shown = (NOT_RECORDED if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(shown)} |"

    return "\n".join([line(names), f"|{' --- |' * len(names)}", *map(line, rows)])
