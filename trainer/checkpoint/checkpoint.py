"""Checkpoints: one folder a step, written beside the old one and renamed, checked by sha256 on load.

``000040/`` holds ``tensors/``, which torch.distributed.checkpoint writes, a file a rank, and reads for any number of
ranks; for each learner a folder with its model's configuration; ``config.json`` (the settings), ``state.json`` and
``manifest.json``. Several hosts must share the folder.

The loop waits for a copy of the tensors alone: they are written behind it, and sealed on the first rank. A checkpoint
counts once it is sealed. (torch's own index of the tensors is a pickle: it is read after its sha256 has been checked.)
"""

import warnings

# A run without torchrun is one process, as it should be.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
