"""Adapters in the policy server, merged in place or loaded at run time by vLLM: which costs what?

    python -m bench.adapters.served MODEL [--rank 16] [--requests 32] [--tokens 64] [--dtype float32] [--device cpu]

An adapter over MODEL, shaken so that it computes something, is served in both ways by vLLM in this process. Printed
are, for each: seconds to bring it in, tokens a second while it generates, and the mean absolute difference, in nats a
token, between vLLM's log-probabilities and the learner's own (which computes base and adapter apart).
"""

import argparse
import json
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
if os.environ.get("PRISM_DEVICE", "cpu") == "cpu":
    os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}

from prism.model import torchvision_cpu

torchvision_cpu.install()

import torch  # noqa: E402
from vllm import LLM, SamplingParams, TokensPrompt  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402

from prism.config import LoraConfig, RunConfig  # noqa: E402
from prism.model.inputs import InputBuilder  # noqa: E402
from prism.model.packing import pack  # noqa: E402
from prism.trainer.learn.adapted import (  # noqa: E402
    adapter_tensors,
    learning,
    load_policy_adapter,
    write_adapter,
)
from prism.trainer.learn.policy_model import response_logprobs  # noqa: E402
from prism.trainer.weights.folder import WeightFolder  # noqa: E402
from prism.wire.v1 import rollout_pb2 as pb  # noqa: E402

QUESTION = "Count the objects in each row and say which row has more of them."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--std", type=float, default=0.01, help="of what the adapter's matrices are shaken by")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        print(json.dumps(measure(options, Path(folder)), indent=1))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    learner = shaken_learner(options)
    inputs = InputBuilder(options.model)
    prompt = inputs.prompt([pb.Message(role="user", parts=[pb.Part(text=QUESTION)])], [])
    write_adapter(learner, adapter_tensors(learner), folder / "adapter")
    pushed = WeightFolder(folder, "policy/1", None)
    pushed.add_adapter(options.model, adapter_tensors(learner), learner.adapted.config)
    size = sum(file.stat().st_size for file in (folder / "adapter").iterdir())
    llm: Any = engine(options, enable_lora=True, max_lora_rank=max(8, options.rank))
    found: dict[str, Any] = {"adapter_bytes": size, "dtype": options.dtype, "device": options.device}
    ids = [TokensPrompt(prompt_token_ids=prompt.input_ids) for _ in range(options.requests)]

    def generate(llm: Any, request: LoRARequest | None) -> dict[str, Any]:
        sampling = SamplingParams(temperature=1.0, max_tokens=options.tokens, ignore_eos=True, logprobs=0, seed=1)
        llm.generate(ids[:1], sampling, lora_request=request, use_tqdm=False)  # warm
        llm.reset_prefix_cache()
        began = time.perf_counter()
        answers = llm.generate(ids, sampling, lora_request=request, use_tqdm=False)
        seconds = time.perf_counter() - began
        tokens = [list(answer.outputs[0].token_ids) for answer in answers]
        theirs = [
            entry[token].logprob
            for answer, of_answer in zip(answers, tokens, strict=True)
            for entry, token in zip(answer.outputs[0].logprobs or [], of_answer, strict=True)
        ]
        batch = pack([inputs.with_ids(prompt, of_answer) for of_answer in tokens], inputs, learner.device)
        with torch.no_grad():
            ours = response_logprobs(learner, batch).cpu()
        apart = (ours - torch.tensor(theirs)).abs()
        return {"tokens_per_second": sum(map(len, tokens)) / seconds, "mismatch_nats": float(apart.mean())}

    found["base, no adapter asked for"] = {"tokens_per_second": generate(llm, None)["tokens_per_second"]}
    request = LoRARequest("tuned", 1, str(folder / "adapter"))
    began = time.perf_counter()
    llm.llm_engine.add_lora(request)
    found["loaded at run time"] = {"seconds": time.perf_counter() - began} | generate(llm, request)
    again = LoRARequest("newer", 2, str(folder / "adapter"))
    began = time.perf_counter()
    llm.llm_engine.add_lora(again)
    found["loaded at run time"]["seconds_again"] = time.perf_counter() - began
    llm.llm_engine.remove_lora(1)
    llm.llm_engine.remove_lora(2)
    llm = None  # its memory is the next one's

    llm = engine(options)
    times: list[float] = []
    for number in range(3):
        began = time.perf_counter()
        arguments = {"folder": str(folder / "policy/1"), "over_same": number > 0}
        llm.collective_rpc("load_merged", kwargs=arguments)
        times.append(time.perf_counter() - began)
    llm.reset_prefix_cache()
    found["merged in place"] = {"seconds": times[0], "seconds_again": min(times[1:])} | generate(llm, None)
    return found


def engine(options: argparse.Namespace, **more: Any) -> Any:
    of_device: dict[str, Any] = {"gpu_memory_utilization": 0.5}
    if options.device == "cpu":
        of_device = {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 16384}
    return LLM(
        model=str(options.model),
        dtype=options.dtype,
        max_model_len=512,
        worker_extension_cls="prism.services.policy.receiver.BroadcastWorker",
        logprobs_mode="processed_logprobs",
        limit_mm_per_prompt={"image": 0, "video": 0},
        **of_device,
        **more,
    )


def shaken_learner(options: argparse.Namespace) -> Any:
    config = RunConfig.model_validate(
        {
            "name": "adapters",
            "model": str(options.model),
            "dtype": options.dtype,
            "device": options.device,
            "stages": {"sft": {"kind": "sft", "data": ["x"], "steps": 1, "batch": 1, "optimizer": {"lr": 1e-3}}},
            "evaluate": {"data": "x", "max_tokens": 8},
            "stack": {"max_model_len": 512},
        }
    )
    learner = load_policy_adapter(options.model, config, LoraConfig(rank=options.rank)).eval()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in learning(learner).values():
            parameter.add_((torch.randn(parameter.shape, generator=random) * options.std).to(parameter))
    return learner


if __name__ == "__main__":
    main()
