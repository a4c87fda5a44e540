"""What a test curates in: stand-ins of a run's services, of a teacher and of a judge."""

from pathlib import Path
from typing import Any

from fake_services import FakeServices
from fake_teacher import FakeTeacher

from prism.config import toml_value
from prism.curation.config import CurateConfig
from prism.curation.run import STEPS, curate


class World:
    """What a test curates in."""

    def __init__(self, folder: Path, services: FakeServices, url: str) -> None:
        self.folder, self.services, self.url = folder, services, url
        self.teacher, self.judge = FakeTeacher(), FakeTeacher()
        self.said: list[str] = []

    def config(self, teacher_url: str, judge_url: str | None = None, **more: Any) -> CurateConfig:
        model = {"api": "openai", "model": "oracle", "input_price": 1, "output_price": 10, "cap": 5, "max_tokens": 500}
        model |= {"patience_seconds": 20, "poll_seconds": 0.05}
        values: dict[str, Any] = {
            "name": "job",
            "runs_dir": self.folder / "runs",
            "run": self.folder,
            "data": str(self.folder / "problems.jsonl"),
            "mine": {"n": 8, "max_tokens": 50},
            "teacher": model | {"url": teacher_url},
            "terms": {"name": "Terms", "accepted_by": "Ada", "licence": "CC-BY-4.0"},
            "verify": {"caption": "judge" if judge_url else "none"},
        }
        if judge_url:
            values["judge"] = model | {"url": judge_url, "model": "judge"}
        for key, value in more.items():
            values[key] = values[key] | value if isinstance(values.get(key), dict) and value else value
        return CurateConfig.model_validate(values)

    def curate(self, config: CurateConfig, steps: Any = STEPS) -> None:
        curate(config, steps, self.said.append)


def write_config(config: CurateConfig, file: Path) -> Path:
    values = config.model_dump(mode="json", exclude_none=True)
    file.write_text("\n".join(f"{key} = {toml_value(value)}" for key, value in values.items()))
    return file
