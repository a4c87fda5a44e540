"""Stands in for vLLM's process under the supervisor: `fake_server.py PORT FOLDER`.

FOLDER/mode says what it does now: ok, busy, broken, hang or deaf. FOLDER/pids gets its process and its child's.
"""

import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

port, folder = int(sys.argv[1]), Path(sys.argv[2])


class Handler(BaseHTTPRequestHandler):
    tokens = 0

    def do_GET(self) -> None:
        mode = (folder / "mode").read_text()
        if mode == "deaf":
            time.sleep(60)
        if self.path == "/metrics":
            Handler.tokens += mode == "busy"
            self._answer(f'vllm:generation_tokens_total{{engine="0"}} {Handler.tokens}\n')
        else:
            phase = "broken" if mode == "broken" else "serving"
            self._answer(f'{{"phase": "{phase}", "reason": "half loaded"}}')

    def do_POST(self) -> None:
        if (folder / "mode").read_text() in ("hang", "busy"):
            time.sleep(60)
        self._answer("{}")

    def _answer(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


child = subprocess.Popen(["/bin/sleep", "600"])
with (folder / "pids").open("a") as file:
    print(os.getpid(), child.pid, file=file)
if (folder / "mode").read_text() == "die":
    print("no memory left for the model", flush=True)
    sys.exit(3)
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
