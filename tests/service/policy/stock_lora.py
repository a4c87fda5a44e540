"""vLLM as it is published, with an adapter that it loads at run time: ``BASE ADAPTER IDS`` -> log-probabilities."""

import json
import os
import sys

os.environ |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}

from prism.model import torchvision_cpu

torchvision_cpu.install()

from vllm import LLM, SamplingParams, TokensPrompt  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402

if __name__ == "__main__":
    base, adapter, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    llm = LLM(
        base,
        dtype="float32",
        max_model_len=256,
        enable_lora=True,
        max_lora_rank=8,
        enforce_eager=True,
        enable_chunked_prefill=False,
    )
    options = SamplingParams(max_tokens=1, prompt_logprobs=0)
    (answer,) = llm.generate(
        [TokensPrompt(prompt_token_ids=ids)], options, lora_request=LoRARequest("tuned", 1, adapter), use_tqdm=False
    )
    known = zip(ids[1:], (answer.prompt_logprobs or [])[1:], strict=True)
    print(json.dumps([entry[token].logprob for token, entry in known if entry]))
