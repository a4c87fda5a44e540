"""``python -m bench.real``: a whole run at a real model's shape."""
