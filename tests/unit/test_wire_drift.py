"""What is generated from the wire, or exported from the code, is what lies in the repository."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_openapi_documents_are_those_of_the_services() -> None:
    script = [sys.executable, ROOT / "scripts/export-openapi", "--check"]
    result = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_protobuf_code_is_generated_from_proto(tmp_path: Path) -> None:
    subprocess.run([ROOT / "scripts/generate-protobuf", tmp_path], check=True)
    generated = {path.name: path.read_text() for path in (tmp_path / "prism/wire/v1").iterdir()}
    committed = {path.name: path.read_text() for path in (ROOT / "prism/wire/v1").glob("*_pb2.py*")}
    assert generated == committed, "run `make protobuf`"
