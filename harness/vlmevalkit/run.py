"""VLMEvalKit's own run.py, with a class of model that its settings may name: our policy service.

    PRISM_TOKEN=... python harness/vlmevalkit/run.py --config harness/vlmevalkit/policy.json --work-dir out

In VLMEvalKit's environment. The stock class asks our service as well, but cannot read our three sections, encodes
pictures again as JPEG, logs the key, and has requests that failed scored as wrong or guessed.
"""

import base64
import os
import re
from importlib import import_module  # it is not installed where types are checked
from pathlib import Path
from typing import Any

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
api: Any = import_module("vlmeval.api")
run: Any = import_module("vlmeval.run")
status: Any = import_module("vlmeval.smp.status_report")
Stock: Any = api.GPT4V


class Policy(Stock):
    """Its token is PRISM_TOKEN, so that a judge, who is given OPENAI_API_KEY, never sees it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(key="PRISM_TOKEN's", **settings)  # which it logs
        self.key = os.environ["PRISM_TOKEN"]
        self._failed, self._why = dict[str | None, str](), ""

    def generate(self, message: Any, dataset: str | None = None) -> str:
        """Raises RuntimeError where the stock class gives a text that says so: then the benchmark has no score."""
        said = "" if dataset in self._failed else super().generate(message, dataset)
        if self.fail_msg in said:
            self._failed[dataset] = f"no score, a request failed {self.retry} times: {self._why}"
        if dataset in self._failed:  # those that are left need not be asked
            raise RuntimeError(self._failed[dataset])
        return said

    def generate_inner(self, inputs: Any, **options: Any) -> tuple[int, str, Any]:
        try:
            code, said, response = super().generate_inner(inputs, **options)
        except Exception as error:
            self._why = str(error)
            raise
        if self.fail_msg in said:
            self._why = f"{response.status_code} {response.text[:300]}"
        return code, said or "-", response  # a response without text is one, and no request that failed

    def prepare_itlist(self, inputs: list[dict[str, str]]) -> Any:
        """Pictures as they lie on the disk, in their own size."""
        if all(part["type"] == "text" for part in inputs):
            return super().prepare_itlist(inputs)
        return [_part(part) for part in inputs if part["value"]]

    @staticmethod
    def split_thinking(said: str) -> tuple[str, str]:
        """What is scored, the last <answer> or all where there is none; and what stands before."""
        found = list(_ANSWER.finditer(said))
        return (found[-1][1].strip(), said[: found[-1].start()].strip()) if found else (said, "")


def _part(part: dict[str, str]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["value"]}
    file = Path(part["value"])
    kind = {".jpg": "jpeg"}.get(file.suffix.lower(), file.suffix[1:].lower())
    return {
        "type": "image_url",
        "image_url": {"url": f"data:image/{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"},
    }


def main() -> None:
    """Exits with status 1 if a benchmark has no score; the stock command ends with 0 whatever happened."""
    if not os.environ.get("PRISM_TOKEN"):
        raise SystemExit("PRISM_TOKEN is not set: it is the policy service's data token")
    api.Policy = Policy
    os.environ["SPLIT_THINK"] = "1"  # has split_thinking called
    options = run.parse_args()
    run.run_local_mode(options)
    rows = [row for name in options.model for row in status.collect_run_benchmark_report(Path(options.work_dir, name))]
    failed = [f"{row['benchmark']}: {row['eval_error']}" for row in rows if row["eval_error"]]
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
