"""vLLM's shapes of scoring, and OpenAI's parts of messages: as their clients send them."""

import math
from typing import Any

import httpx
import pytest
from expert_app import GOOD, OTHER, png, score, uri

CHAT = [{"role": "user", "content": "Sum?"}]
SAID = [*CHAT, {"role": "assistant", "content": GOOD}]


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize(
    ("prompts", "responses"),
    [("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2")],
)
async def test_one_prompt_and_its_responses(client: httpx.AsyncClient, prompts: str, responses: str) -> None:
    expected = [one["score"] for one in await score(client, GOOD, OTHER)]
    answer = await post(client, "/score", **{prompts: "Sum?", responses: [GOOD, OTHER], "use_activation": False})
    assert [one["score"] for one in answer["data"]] == pytest.approx(expected, abs=1e-5)
    assert [(one["index"], one["object"], one["status"]) for one in answer["data"]] == [
        (0, "score", "ok"),
        (1, "score", "ok"),
    ]
    assert (answer["object"], answer["model"], answer["version"]) == ("list", "perception", 0)
    assert answer["usage"]["total_tokens"] > 0
    activated = await post(client, "/score", **{prompts: "Sum?", responses: [GOOD, OTHER]})
    assert [one["score"] for one in activated["data"]] == pytest.approx([sigmoid(one) for one in expected], abs=1e-5)


async def test_a_prompt_for_each_response_and_images_in_it(client: httpx.AsyncClient) -> None:
    image = uri(png())
    [seen] = await score(client, GOOD, image=image)
    [other] = await score(client, OTHER)
    query = {"content": [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "Sum?"}]}
    document = {"content": [{"type": "text", "text": GOOD}]}
    answer = await post(client, "/score", queries=[query, "Sum?"], documents=[document, OTHER], use_activation=False)
    given = [one["score"] for one in answer["data"]]
    assert given == pytest.approx([seen["score"], other["score"]], abs=1e-5)


DOCUMENTED = {
    "common": {"model": "m", "user": "u", "request_id": "r", "priority": 0, "cache_salt": "s", "use_activation": True},
    "of the examples": {"model": "m", "encoding_format": "float"},
    "defaults": {"truncate_prompt_tokens": None, "truncation_side": None, "mm_processor_kwargs": None, "user": None},
}
OF_SCORES = {"max_tokens_per_query": 0, "max_tokens_per_doc": 0, "instruction": None, "chat_template_kwargs": {}}
OF_CHATS: dict[str, Any] = {
    **dict.fromkeys(("add_generation_prompt", "continue_final_message", "add_special_tokens"), False),
    **dict.fromkeys(("chat_template", "chat_template_kwargs", "media_io_kwargs")),
}
ANSWER = {"id", "object", "created", "model", "data", "usage"}
USAGE = {"prompt_tokens", "total_tokens", "completion_tokens", "prompt_tokens_details"}


@pytest.mark.parametrize("options", DOCUMENTED.values(), ids=DOCUMENTED.keys())
async def test_every_documented_option_may_say_what_holds_without_it(
    client: httpx.AsyncClient, options: dict[str, Any]
) -> None:
    """And the answers have every field that vLLM's have."""
    scored = await post(client, "/score", queries="Sum?", documents=GOOD, **options, **OF_SCORES)
    assert scored["data"][0].keys() >= {"index", "object", "score"}
    kept = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None, "name": None}
    classified = await post(client, "/classify", messages=[CHAT[0], SAID[1] | kept], **options, **OF_CHATS)
    assert classified["data"][0].keys() >= {"index", "label", "probs", "num_classes"}
    assert classified["data"][0]["probs"] == [pytest.approx(scored["data"][0]["score"], abs=1e-5)]
    for answer in (scored, classified):
        assert answer.keys() >= ANSWER
        assert answer["usage"].keys() == USAGE


async def test_the_name_that_clients_ask_for_first_is_served(client: httpx.AsyncClient) -> None:
    models = (await client.get("/v1/models")).json()
    [model] = models["data"]
    assert (models["object"], model["id"], model["object"], model["root"]) == ("list", "perception", "model", "model")
    answer = await post(client, "/score", model=model["id"], queries="Sum?", documents=GOOD)
    assert answer["model"] == model["id"]


async def test_what_could_not_be_scored_has_no_number(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/score", queries="Sum?", documents=["no sections", GOOD])
    assert [one["score"] is None for one in answer["data"]] == [True, False]
    assert answer["data"][0]["status"] == "invalid_format"
    assert "missing <caption>" in answer["data"][0]["detail"]
    whole = await post(client, "/score", queries="Sum?", documents="no sections", section="all")
    assert whole["data"][0]["status"] == "ok"
    classified = await post(client, "/classify", messages=[*CHAT, {"role": "assistant", "content": "no sections"}])
    [one] = classified["data"]
    assert (one["label"], one["probs"], one["status"]) == (None, [], "invalid_format")


async def test_a_chat_is_classified_by_its_last_message(client: httpx.AsyncClient) -> None:
    [expected] = await score(client, GOOD)
    said = {"role": "assistant", "content": [{"type": "text", "text": GOOD}]}
    answer = await post(client, "/classify", model="any", messages=[*CHAT, said], request_id="mine")
    [one] = answer["data"]
    assert (one["index"], one["label"], one["num_classes"]) == (0, "LABEL_0", 1)
    assert one["probs"] == [pytest.approx(sigmoid(expected["score"]), abs=1e-5)]
    assert answer["id"] == "classify-mine"
    raw = await post(client, "/classify", messages=[*CHAT, said], use_activation=False)
    assert raw["data"][0]["probs"] == [pytest.approx(expected["score"], abs=1e-5)]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/score", {}, "give one pair"),
        ("/score", {"queries": "a"}, "give one pair"),
        ("/score", {"queries": "a", "text_2": "b"}, "give one pair"),
        ("/score", {"queries": "a", "documents": "b", "items": "c"}, "give one pair"),
        ("/score", {"queries": ["a", "b"], "documents": ["c", "d", "e"]}, "2 prompts and 3 responses"),
        ("/score", {"queries": "a", "documents": []}, "documents"),
        ("/score", {"queries": "a", "documents": "b", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens: would"),
        ("/score", {"queries": "a", "documents": "b", "instruction": "rank"}, "instruction: would change"),
        ("/score", {"queries": "a", "documents": "b", "bogus": None}, "bogus"),
        ("/classify", {"messages": SAID, "add_generation_prompt": True}, "add_generation_prompt: would change"),
        ("/classify", {"messages": [*CHAT, SAID[1] | {"reasoning": "hm"}]}, "reasoning"),
        (
            "/score",
            {"queries": "a", "documents": {"content": [{"type": "image_url", "image_url": "data:,"}]}},
            "images go into the prompt",
        ),
        ("/classify", {"input": "user: a assistant: b"}, "does not say where the response begins"),
        ("/classify", {"messages": CHAT}, "at least 2"),
        ("/classify", {"messages": CHAT * 2}, "must be the assistant's"),
        ("/classify", {"messages": [{"role": "assistant", "content": "b"}] * 2}, "must be the assistant's"),
    ],
)
async def test_what_has_no_meaning_here_is_refused(
    client: httpx.AsyncClient, path: str, body: dict[str, Any], named: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert named in answer.text


@pytest.mark.parametrize("form", ["object", "text", "with more"])
async def test_openais_image_parts_are_read(client: httpx.AsyncClient, form: str) -> None:
    image = uri(png())
    given = {"object": {"url": image}, "text": image, "with more": {"url": image, "detail": "high", "format": "png"}}
    part = {"type": "image_url", "image_url": given[form]}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "Sum?"}]}]
    answer = await client.post("/v1/score", json={"items": [{"messages": messages, "responses": [GOOD]}]})
    assert answer.json()["items"][0]["scores"] == await score(client, GOOD, image=image)


@pytest.mark.parametrize("part", [{}, {"image_url": None}, {"image_url": {}}, {"image_url": {"url": 7}}])
async def test_an_image_part_without_an_image_is_named(client: httpx.AsyncClient, part: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url"} | part]}]
    answer = await client.post("/v1/score", json={"items": [{"messages": messages, "responses": [GOOD]}]})
    assert answer.status_code == 422
    assert "an image_url part is" in answer.text
