"""The node's stage: SFT is the platform's own; the others are loops of this process.

**This is a single-process loop, not the platform.** There are no services, no streams and no pushes: what samples,
judges and learns takes turns on one device. What learns is the platform's: its learners, advantages, losses, inputs,
grader and experts, in the order of its stages (``prism.trainer.stages.align`` and ``rlvr``).
"""

import math
from pathlib import Path
from typing import Any

import torch

from bench.effect.loop.game import align
from bench.effect.loop.pretrain import pretrain
from bench.effect.loop.reinforce import reinforce
from bench.effect.loop.setting import STAGE, Prompts, Setting, stage_of
from bench.effect.nodes import Node, parent
from prism.files import append_json
from prism.model.inputs import Example, InputBuilder
from prism.model.packing import pack, split_by_tokens
from prism.trainer.flow.demonstrations import Order
from prism.trainer.learn import ranks
from prism.trainer.learn.optimizer import Optimizer
from prism.trainer.learn.policy_model import load_learner, response_logprobs, save_policy
from prism.trainer.stages import sft

HELD_OUT = 8  # of the teacher's texts one in so many tells when to stop
LOOK_EVERY = 5  # steps


def train(setting: Setting, nodes: Path, node: Node, out: Path) -> dict[str, Any]:
    """Train the node from its parent's model in ``nodes`` and write its model to ``out``; returns figures."""
    start = setting.root / "model" if not node.steps else nodes / parent(setting.plan, node).name
    work = setting.work(node)
    kind = setting.step(node).stage if node.steps else "pretrain"
    if kind == "sft":
        config = setting.config(node, work, start, "sft", setting.data("sft.jsonl"))
        figures = sft.train(config, STAGE, stage_of(config), start, out)
        return {"steps": figures["steps"]}
    work.mkdir(parents=True, exist_ok=True)
    (work / "metrics.jsonl").unlink(missing_ok=True)  # of a sitting that did not come to its end
    ranks.seed(node.seed)
    if kind == "pretrain":
        config = setting.config(node, work, start, "sft", setting.data("pretrain.jsonl"))
        return pretrain(config, stage_of(config), start, work, out)
    if kind == "teach":
        return teach(setting, node, start, work, out)
    return (align if kind == "align" else reinforce)(setting, nodes, node, start, work, out)


def teach(setting: Setting, node: Node, start: Path, work: Path, out: Path) -> dict[str, Any]:
    """SFT on the teacher's texts, a step as the platform's SFT makes it.

    Early-stopped, an eighth of the texts is held out, and the weights are kept that give it the best likelihood; so
    both see the same texts, and the arm knows no more than N of them.
    """
    config = setting.config(node, work, start, "sft", setting.texts(node))
    stage = stage_of(config)
    inputs = InputBuilder(start)
    prompts = Prompts(setting.texts(node), inputs, ("teacher",))
    examples = [inputs.with_text(prompts.prompt(i), prompts.row(i).teacher or "") for i in range(len(prompts))]
    stops = setting.step(node).early_stop
    held_out = examples[::HELD_OUT] if stops else []
    own = [example for place, example in enumerate(examples) if not stops or place % HELD_OUT]
    model = load_learner(start, config)
    model.train()
    optimizer = Optimizer(model.named_parameters(), stage.optimizer, stage.steps)
    order = Order(len(own), min(stage.batch, len(own)), node.seed)
    best, best_step, kept = math.inf, stage.steps, None
    for step in range(stage.steps):
        batch = [own[i] for i in order.at(step)]
        loss = _update(model, optimizer, batch, inputs, stage.micro_batch_tokens)
        figures = {"step": step + 1, "loss": loss}
        if held_out and ((step + 1) % LOOK_EVERY == 0 or step + 1 == stage.steps):
            found = _loss(model, held_out, inputs, stage.micro_batch_tokens)
            figures["held_out_loss"] = found
            if found < best:
                best, best_step = found, step + 1
                kept = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        append_json(work / "metrics.jsonl", figures, sync=False)
    if kept is not None:
        model.load_state_dict(kept)
    save_policy(model, out, inputs)
    return {"steps": stage.steps, "stopped_at": best_step, "held_out_loss": None if kept is None else best}


def _update(
    model: Any, optimizer: Optimizer, examples: list[Example], inputs: InputBuilder, micro_batch_tokens: int
) -> float:
    tokens, total = sum(len(example.response_ids) for example in examples), 0.0
    for indices in split_by_tokens([[example] for example in examples], micro_batch_tokens):
        batch = pack([examples[i] for i in indices], inputs, model.device)
        loss = -response_logprobs(model, batch).sum() / tokens
        loss.backward()
        total += loss.item()
    optimizer.step(total)
    return total


@torch.no_grad()
def _loss(model: Any, examples: list[Example], inputs: InputBuilder, micro_batch_tokens: int) -> float:
    """Nats a response token."""
    model.eval()
    total = 0.0
    for indices in split_by_tokens([[example] for example in examples], micro_batch_tokens):
        batch = pack([examples[i] for i in indices], inputs, model.device)
        total -= float(response_logprobs(model, batch).sum())
    model.train()
    return total / sum(len(example.response_ids) for example in examples)
