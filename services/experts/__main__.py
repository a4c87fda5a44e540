"""``prism serve perception``, ``prism serve reasoning``, and both in one process by ``prism serve experts``."""

import sys

from prism.http.app import serve
from prism.services.experts.settings import ExpertSettings
from prism.settings import load_settings
from prism.wire.response import EXPERTS, Expert


def main(expert: Expert) -> None:
    _serve(load_settings(ExpertSettings, expert=expert))


def main_of_both() -> None:
    """Perception on PRISM_PORT, reasoning on the port after it; each notes its weights in a folder of PRISM_STATE_DIR.
    They share what their adapters are over."""
    both = [load_settings(ExpertSettings, expert=expert) for expert in EXPERTS]
    ports = [settings.port + number for number, settings in enumerate(both)]
    host = "127.0.0.1" if both[0].host in ("0.0.0.0", "::") else both[0].host  # noqa: S104 (to be reached, not bound)
    _serve(
        *(
            settings.model_copy(
                update={
                    "port": port,
                    "admin_port": settings.admin_port and settings.admin_port + number,
                    "state_dir": settings.state_dir / settings.expert,
                    "peer_url": f"http://{host}:{ports[1 - number]}",
                }
            )
            for number, (settings, port) in enumerate(zip(both, ports, strict=True))
        )
    )


def _serve(*settings: ExpertSettings) -> None:
    from prism.model.adapters.experts import Bases
    from prism.services.experts.app import create_app  # with torch, for which a mistake in the settings need not wait

    # Threads that read requests would keep the one that feeds the model waiting for up to 5 ms at each operation.
    sys.setswitchinterval(0.0005)
    bases = Bases()
    first, *beside = ((create_app(each, bases), each) for each in settings)
    serve(*first, *beside)
