"""One image, every reader: whatever its format leaves open, data, learner, policy server and experts see the same."""

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vllm import Service
from PIL import Image
from pydantic import SecretStr

from prism.config import LimitsConfig
from prism.data.blobs import BlobStore
from prism.data.images import canonical_image, decode_image
from prism.data.rows import Prompts, read_rows
from prism.errors import DataError
from prism.model.inputs import InputBuilder
from prism.services.experts.planner import Pixels, Planner
from prism.services.experts.settings import ExpertSettings
from prism.services.policy.settings import PolicySettings
from prism.settings import load_settings
from prism.trainer.flow.examples import GroupExamples
from prism.wire.messages import image_sha256s
from prism.wire.v1 import rollout_pb2 as pb

RAMP = np.arange(64 * 48, dtype=np.uint32).reshape(48, 64)
HALF = [value // 2 for value in range(256)]
PHOTO = Image.fromarray(np.stack([RAMP % 251, RAMP % 199, RAMP // 13 % 256], -1).astype(np.uint8))


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def flipbook() -> bytes:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    return file(frames[0], "GIF", save_all=True, append_images=frames[1:])


SEEN = {
    "plain PNG": file(PHOTO),
    "RGB with a transparent colour": file(PHOTO, transparency=PHOTO.getpixel((5, 5))),
    "palette with transparency": file(PHOTO.quantize(16), transparency=3),
    "palette": file(PHOTO.quantize(16)),
    "grey with alpha": file(PHOTO.convert("LA").point(HALF * 2)),
    "RGB with alpha": file(PHOTO.convert("RGBA").point(HALF * 4)),
    "16 bits": file(Image.fromarray((RAMP * 21).astype(np.uint16))),
    "one bit": file(PHOTO.convert("1")),
    "CMYK": file(PHOTO.convert("CMYK"), "JPEG"),
    "photo": file(PHOTO, "JPEG"),
    "turned": file(PHOTO, "JPEG", exif=turned(6)),
    "turned PNG": file(PHOTO, exif=turned(8)),
    "EXIF of no meaning": file(PHOTO, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    "animated": flipbook(),
    "WebP with alpha": file(PHOTO.convert("RGBA").point(HALF * 4), "WEBP", lossless=True),
    "thin": file(PHOTO.resize((2, 300))),
    "interlaced or with more chunks": file(PHOTO, dpi=(72, 72)),
}
REFUSED = {
    "broken EXIF": file(PHOTO, exif=b"Exif\0\0no TIFF"),
    "too thin": file(PHOTO.resize((1, 300))),
    "huge": file(Image.new("L", (4097, 4096))),
    "cut off": file(PHOTO)[:-900],
    "32 bits": file(Image.new("F", (8, 8)), "TIFF"),
    "no image": b"hello",
}


def digest(image: Image.Image) -> str:
    assert image.mode == "RGB"
    return hashlib.sha256(np.asarray(image).tobytes() + repr(image.size).encode()).hexdigest()


def naive(png: bytes) -> str:
    """A reader that knows nothing of transparency or EXIF."""
    image = Image.open(io.BytesIO(png))
    assert (image.format, image.mode, image.info) == ("PNG", "RGB", {})
    return digest(image)


def uri(raw: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(raw).decode()


def row(*images: str) -> dict[str, Any]:
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "Sum?"}]
    return {"id": "q", "messages": [{"role": "user", "content": parts}]}


async def ask(service: Service, url: object, count: int = 1) -> tuple[int, str]:
    part = {"type": "image_url", "image_url": url}
    body = {"model": "policy", "messages": [{"role": "user", "content": [part] * count}]}
    answer = await service.data.post("/v1/chat/completions", json=body)
    return answer.status_code, answer.text


@pytest.fixture
def settings(settings: PolicySettings) -> PolicySettings:
    return settings.model_copy(update={"body_limit": 2**22})


@pytest.fixture
def planner(tiny_model: Path, tmp_path: Path) -> Planner:
    settings = load_settings(
        ExpertSettings,
        expert="perception",
        model=tiny_model,
        weights_root=tmp_path / "weights",
        state_dir=tmp_path / "state",
        port=8000,
        token=SecretStr("data-token-0123456789"),
        admin_token=SecretStr("admin-token-0123456789"),
    )
    return Planner(settings, InputBuilder(tiny_model))


async def test_every_reader_sees_the_same_pixels(service: Service, planner: Planner, tmp_path: Path) -> None:
    blobs = BlobStore(str(tmp_path / "blobs"))
    for name, raw in SEEN.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps(row(uri(raw))))
        prompt = Prompts(read_rows(tmp_path / "rows.jsonl", "fail"), blobs)[0]
        blob = blobs.get(image_sha256s(prompt.messages)[0])
        seen = digest(decode_image(raw))
        assert seen == naive(blob), name

        for url in ({"url": uri(raw)}, uri(raw), {"url": uri(raw).replace("data:", "DATA:")}):
            assert (await ask(service, url))[0] == 200, name
            sent = service.vllm.request["messages"][0]["content"][0]["image_url"]
            sent = sent["url"] if isinstance(sent, dict) else sent
            assert naive(base64.b64decode(sent.partition(",")[2])) == seen, name

        expected = planner.inputs.prompt(prompt.messages, [decode_image(blob)])
        group = pb.RolloutGroup(request=pb.RolloutRequest(prompt=prompt), prompt_token_ids=expected.input_ids)
        learners = GroupExamples(planner.inputs, blobs).prompt(group)
        judged = planner._made_ready(raw)
        assert isinstance(judged, Pixels), name
        assert learners.pixel_values is not None
        assert learners.pixel_values.equal(judged.values), name


async def test_vllm_is_given_a_plain_data_uri_however_it_was_written(service: Service) -> None:
    plain = uri(canonical_image(SEEN["photo"]))
    data = plain.partition(",")[2]
    for written in (
        f"DATA:IMAGE/PNG;BASE64,\n{data[:76]}\n{data[76:]}",
        f" data:image/png; base64, {data.rstrip('=')}",
    ):
        assert (await ask(service, {"url": written}))[0] == 200
        assert service.vllm.request["messages"][0]["content"][0]["image_url"]["url"] == plain


async def test_what_one_reader_refuses_all_refuse(service: Service, planner: Planner, tmp_path: Path) -> None:
    for name, raw in REFUSED.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps(row(uri(raw))))
        with pytest.raises(DataError, match=r"rows.jsonl:1: image 'data:"):
            read_rows(tmp_path / "rows.jsonl", "fail")
        with pytest.raises(DataError):
            canonical_image(raw)
        status, text = await ask(service, {"url": uri(raw)})
        assert (status, service.vllm.request) == (413 if name == "huge" else 422, {}), (name, text)
        assert isinstance(planner._made_ready(raw), DataError), name
    assert "PRISM_MAX_IMAGE_PIXELS" in (await ask(service, {"url": uri(REFUSED["huge"])}))[1]
    assert service.middleware.gate.in_flight == 0


async def test_spelling_hides_no_image_and_no_request_is_broken(service: Service) -> None:
    part = {"type": "image_url", "image_url": {"url": uri(SEEN["RGB with a transparent colour"])}}
    hidden = json.dumps({"messages": [{"role": "user", "content": [part]}]}).replace("image", "\\u0069m\\u0061ge")
    assert (await service.data.post("/v1/chat/completions", content=hidden)).status_code == 200
    sent = service.vllm.request["messages"][0]["content"][0]["image_url"]["url"]
    naive(base64.b64decode(sent.partition(",")[2]))
    for body in ([], {"messages": "image"}, {"messages": [7, {"content": ["image", {"image_url": 7}]}]}):
        assert (await service.data.post("/tokenize", json=body)).status_code == 200
        assert service.vllm.request == body
    status, text = await ask(service, {"url": uri(SEEN["photo"])}, 9)
    assert status == 422
    assert "At most 8" in text


def test_a_canonical_png_stays_as_it_is_and_only_that() -> None:
    made = canonical_image(SEEN["photo"])
    assert canonical_image(made) is made
    assert canonical_image(SEEN["plain PNG"]) is SEEN["plain PNG"]
    for name, raw in SEEN.items():
        assert (canonical_image(raw) is raw) == (name in ("plain PNG", "thin")), name
    assert canonical_image(made + b"more") == made
    flipped = bytearray(made)
    flipped[60] ^= 1
    with pytest.raises(DataError):
        canonical_image(bytes(flipped))


def test_a_prompt_that_no_service_takes_is_refused_by_its_figures(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(canonical_image(file(Image.fromarray(noise), "BMP")))
    lines = [row(*["a.png"] * count) | {"id": str(count)} for count in (1, 2, 3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = read_rows(tmp_path / "rows.jsonl", "skip", limits=LimitsConfig(max_images=2))
    assert [each.id for each in found.rows] == ["1", "2"]
    assert found.problems == [f"{tmp_path / 'rows.jsonl'}:3: 3 images, over the limit of 2 (max_images)"]
    body = 64 * 1024 + 4 * (tmp_path / "a.png").stat().st_size // 3 * 2 + 100
    found = read_rows(tmp_path / "rows.jsonl", "skip", limits=LimitsConfig(body_limit=body))
    assert [each.id for each in found.rows] == ["1", "2"]
    assert f"over the limit of {body} (body_limit)" in found.problems[0]
