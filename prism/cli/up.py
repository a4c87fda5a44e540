"""``prism up``: the services of a run alone."""

import time

from prism import logs
from prism.cli.options import ConfigArgument, Overrides, WaitForLock


def up(config: ConfigArgument, overrides: Overrides = None, wait_for_lock: WaitForLock = 0) -> None:
    """All services of a run as processes of this machine, until Ctrl-C."""
    from prism.config import load_config
    from prism.settings import load_settings
    from prism.stack.folder_lock import lock_run
    from prism.stack.local import Stack
    from prism.trainer.run.expert_start import refuse_unfit_starts, served_experts
    from prism.trainer.run.launch import Launch
    from prism.trainer.run.pipeline import of_cards, policy_share, prepare, served_model, unfinished

    console = logs.console()
    resolved = load_config(config, overrides)
    with lock_run(resolved.run_dir, "services", wait_seconds=wait_for_lock):
        prepare(resolved, console)
        refuse_unfit_starts(resolved, unfinished(resolved), served_model(resolved))
        share = policy_share(resolved, of_cards(resolved, load_settings(Launch)), attach=False)
        experts = served_experts(resolved)
        with Stack(resolved, served_model(resolved), console, experts=experts, policy_share=share) as stack:
            console.print(f"addresses and tokens are in {resolved.run_dir / 'stack.json'}; Ctrl-C stops everything")
            while True:
                stack.check()
                time.sleep(1)
