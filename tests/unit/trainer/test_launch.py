"""How stages are started on nodes that train together; with torchrun itself."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prism.errors import ConfigError
from prism.settings import load_settings
from prism.stack.ports import free_port
from prism.trainer.run.launch import Launch

SAY = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo")
ranks = [None] * dist.get_world_size()
dist.all_gather_object(ranks, (dist.get_rank(), os.environ["LOCAL_RANK"], sys.argv[1]))
if dist.get_rank() == 0:
    print(ranks)
dist.destroy_process_group()
"""


def test_alone_is_python_itself() -> None:
    assert load_settings(Launch).python("demo-sft") == [sys.executable]


def test_nodes_meet_and_number_their_ranks(tmp_path: Path) -> None:
    script = tmp_path / "say.py"
    script.write_text(SAY)
    rendezvous = f"127.0.0.1:{free_port()}"

    def start(rank: int) -> str:
        launch = Launch(node_processes=2, nodes=2, node_rank=rank, rendezvous=rendezvous)
        command = [*launch.python("demo-align"), str(script), "align"]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout

    with ThreadPoolExecutor() as threads:
        said = "".join(threads.map(start, (1, 0)))  # whichever starts first
    assert said.strip() == "[(0, '0', 'align'), (1, '1', 'align'), (2, '0', 'align'), (3, '1', 'align')]"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"nodes": 2, "node_rank": 2, "rendezvous": "a:1"}, "PRISM_NODE_RANK is counted from 0"),
        ({"nodes": 2}, "need PRISM_RENDEZVOUS"),
        ({"nodes": 2, "rendezvous": "a"}, "PRISM_RENDEZVOUS"),
    ],
)
def test_what_cannot_meet_is_refused(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_settings(Launch, **values)
