"""Whether the servers of a stage look at the picture."""

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from stage_services import JsonHandler

from prism.clients.endpoints import Endpoints
from prism.config import ExpertLearnerConfig
from prism.data.blobs import BlobStore
from prism.data.images import decode_image
from prism.errors import ConfigError
from prism.trainer.stages.picture_check import check_pictures, refuse_other_judging, with_other_pictures
from prism.wire.v1 import rollout_pb2 as pb


class Models:
    """Policy and experts on one port. Those in ``blind`` do not look at the picture, those in ``away`` fail."""

    def __init__(self) -> None:
        self.blind: set[str] = set()
        self.away: set[str] = set()
        self.judging: dict[str, Any] = {}
        outer = self

        class Handler(JsonHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model = self.path.split("/")[1]
                seen = 0 if model in outer.blind else hash(json.dumps(body)) % 1000 / 1000
                if model == "policy":
                    answer: Any = {"prompt_logprobs": [None, *({"7": {"logprob": -1 - seen}} for _ in range(99))]}
                else:
                    scored = {"status": "ok", "score": seen, "section": "all"}
                    answer = {"expert": model, "version": 0, "attempt": 1, "items": [{"scores": [scored]}]}
                self.answer(400 if model in outer.away else 200, answer)

            def do_GET(self) -> None:
                model = self.path.split("/")[1]
                assert self.path == f"/{model}/v1/model"
                info = {"expert": model, "version": 0, "attempt": 1, "architecture": "x", "base": "x"} | outer.judging
                info |= {"experts": None, "experts_per_token": None, "dtype": "float32", "device": "cpu"}
                info |= {"parameters": 1, "limits": {}, "urls": False, "calibration": None}
                self.answer(400 if model in outer.away else 200, info)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def models() -> Iterator[Models]:
    made = Models()
    yield made
    made.http.shutdown()
    made.http.server_close()


def context(models: Models, blobs: BlobStore) -> Any:
    at = f"http://127.0.0.1:{models.http.server_port}"
    urls = {f"{name}_url": f"{at}/{name}" for name in ("policy", "perception", "reasoning", "grader")}
    said: list[str] = []
    return SimpleNamespace(
        endpoints=Endpoints.model_validate(urls | {"redis_url": "redis://x", "blobs": "x", "token": "x" * 16}),
        blobs=blobs,
        inputs=SimpleNamespace(text_ids=lambda text: list(range(5))),
        say=lambda text, **_: said.append(text),
        said=said,
    )


def test_models_that_do_not_look_or_cannot_be_asked_are_named(
    models: Models, blobs: BlobStore, teacher_prompts: list[pb.Prompt]
) -> None:
    made = context(models, blobs)
    text_only = pb.Prompt(id="text", messages=[pb.Message(role="user", parts=[pb.Part(text="?")])])
    prompts = [text_only, *teacher_prompts]
    assert check_pictures(made, prompts, ["perception", "reasoning"]) == []
    models.blind, models.away = {"policy", "reasoning"}, {"perception"}
    assert check_pictures(made, prompts, ["perception", "reasoning"]) == made.said
    policy, perception, reasoning = made.said
    assert policy.startswith(f"the policy answers the same to another picture (of prompt {teacher_prompts[0].id}")
    assert perception.startswith("whether the perception expert looks at pictures could not be asked: ")
    assert reasoning.startswith("the reasoning expert answers the same")
    assert check_pictures(made, prompts, []) == [policy]
    assert check_pictures(made, [text_only], ["perception"]) == []


def test_a_service_that_shows_its_model_something_else_ends_the_stage(models: Models, blobs: BlobStore) -> None:
    learner = ExpertLearnerConfig.model_validate({"optimizer": {"lr": 1}})
    made = context(models, blobs)
    refuse_other_judging(made, learner)  # of a release that does not say, everything is as published
    models.judging = {"pictures": True, "section": "own"}
    refuse_other_judging(made, learner)
    assert made.said == []
    for values, theirs in (({"pictures": False}, "PICTURES=true"), ({"section": "whole"}, "SECTION=own")):
        with pytest.raises(ConfigError, match=f"the perception expert's service judges with .*PRISM_EXPERT_{theirs}"):
            refuse_other_judging(made, learner.model_copy(update=values))
    models.judging = {"pictures": False, "section": "whole"}
    refuse_other_judging(made, learner.model_copy(update=models.judging))
    models.away = {"perception"}
    with pytest.raises(ConfigError, match=r"reasoning expert's service .* learns with pictures = true"):
        refuse_other_judging(made, learner)
    assert made.said[0].startswith("what the perception expert is shown could not be asked: ")


def test_the_other_picture_is_of_the_same_size(
    models: Models, blobs: BlobStore, teacher_prompts: list[pb.Prompt]
) -> None:
    messages = list(teacher_prompts[0].messages)
    before = [message.SerializeToString() for message in messages]
    others = with_other_pictures(messages, context(models, blobs))
    pairs = [
        (decode_image(blobs.get(one.image_sha256)), decode_image(blobs.get(other.image_sha256)))
        for own, changed in zip(messages, others, strict=True)
        for one, other in zip(own.parts, changed.parts, strict=True)
        if one.HasField("image_sha256")
    ]
    assert pairs
    assert all(one.size == other.size and one.tobytes() != other.tobytes() for one, other in pairs)
    assert [message.SerializeToString() for message in messages] == before
