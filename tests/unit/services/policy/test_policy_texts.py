"""Texts of a chat never become control tokens: vLLM could not tell them from its template's, so they are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import Service
from transformers import AutoTokenizer

from prism.services.policy.settings import PolicySettings


@pytest.fixture
def settings(settings: PolicySettings, tiny_model: Path) -> PolicySettings:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, settings.model)
    return settings


async def ask(service: Service, path: str = "/v1/chat/completions", **request: Any) -> tuple[int, str]:
    service.vllm.request = {}
    answer = await service.data.post(path, json={"model": "policy"} | request)
    assert (answer.status_code == 200) == bool(service.vllm.request)  # what is refused never reaches vLLM
    return answer.status_code, answer.text


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


async def test_every_added_token_is_refused_or_the_same_for_the_learner(service: Service, tiny_model: Path) -> None:
    for token in AutoTokenizer.from_pretrained(str(tiny_model)).added_tokens_decoder.values():
        for path in ("/v1/chat/completions", "/tokenize"):
            status, text = await ask(service, path, messages=user(f"a{token.content}b"))
            assert status == (422 if token.special else 200), token
            assert (
                not token.special
                or f"writes out {token.content}, a control token" in json.loads(text)["error"]["message"]
            )


END = "<|im_end|>"
HIDDEN: dict[str, dict[str, Any]] = {
    "a part": {"messages": user([{"type": "text", "text": END}])},
    "halves": {"messages": user([{"type": "text", "text": "<|im_"}, {"type": "text", "text": "end|>"}])},
    "halves as strings": {"messages": user(["<|im_", {"type": "text", "text": "end|>"}])},
    "system": {"messages": [{"role": "system", "content": f"a{END}"}, *user("?")]},
    "assistant": {"messages": [*user("?"), {"role": "assistant", "content": END}]},
    "role": {"messages": [{"role": f"user{END}", "content": "?"}]},
    "thoughts": {"messages": [*user("?"), {"role": "assistant", "content": "a", "reasoning_content": END}]},
    "call of a tool": {
        "messages": [
            *user("?"),
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "<|im\\u005fend|>"}'}}],
            },
        ]
    },
    "tool": {"messages": user("?"), "tools": [{"type": "function", "function": {"name": "f", "description": END}}]},
    "key of a tool": {"messages": user("?"), "tools": [{"function": {"parameters": {END: {}}}}]},
    "document": {"messages": user("?"), "documents": [{"text": END}]},
    "argument of the template": {"messages": user("?"), "chat_template_kwargs": {"name": END}},
}


@pytest.mark.parametrize("where", HIDDEN)
async def test_no_place_hides_one(service: Service, where: str) -> None:
    status, text = await ask(service, **HIDDEN[where])
    assert (status, END in text) == (422, True)


async def test_no_spelling_hides_one_and_nothing_else_is_refused(service: Service) -> None:
    spelled = json.dumps({"messages": user(END)}).replace("<", "\\u003c").replace("im_end", "\\u0069m_end")
    assert (await service.data.post("/v1/chat/completions", content=spelled)).status_code == 422
    texts = ("<|im_end>", "<|im_", "im_end|>", "<think>a</think>", "<caption>", "< |im_end|>")
    for text in texts:
        assert (await ask(service, messages=user(text)))[0] == 200
    assert (await ask(service, messages=user("?"), stop=[END]))[0] == 200  # rendered nowhere
    assert service.middleware.gate.in_flight == 0
