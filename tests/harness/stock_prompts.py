"""Runs in lmms-eval's interpreter: what its tasks ask. Rows by task file come as JSON, texts by task file go out."""

import json
import sys
from importlib import import_module  # it is not installed where types are checked
from pathlib import Path

utils = import_module("lmms_eval.utils")
tasks = Path(utils.__file__ or "").with_name("tasks")
texts: dict[str, list[str]] = {}
for name, rows in json.load(sys.stdin).items():
    task = utils.load_yaml_config(yaml_path=str(tasks / name))
    told = task.get("lmms_eval_specific_kwargs", {}).get("default")
    texts[name] = [task["doc_to_text"](row, told) for row in rows]
print(json.dumps(texts))
