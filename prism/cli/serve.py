"""``prism serve``: one service in the foreground."""

import typer

app = typer.Typer(no_args_is_help=True, help="Run one service in the foreground, configured by PRISM_* variables.")


@app.command("policy")
def serve_policy() -> None:
    """vLLM's OpenAI server with tokens, policy versions and live weights, supervised."""
    from prism.services.policy.__main__ import main

    main()


@app.command("perception")
def serve_perception() -> None:
    """The perception expert's scoring API: judges captions."""
    from prism.services.experts.__main__ import main

    main("perception")


@app.command("reasoning")
def serve_reasoning() -> None:
    """The reasoning expert's scoring API: judges steps and answer, never the caption."""
    from prism.services.experts.__main__ import main

    main("reasoning")


@app.command("experts")
def serve_experts() -> None:
    """Both experts in one process, on PRISM_PORT and the port after it; adapters over one model hold it once."""
    from prism.services.experts.__main__ import main_of_both

    main_of_both()


@app.command("grader")
def serve_grader() -> None:
    """The verifiable-reward API: verdicts over answers, in processes that are killed at a deadline."""
    from prism.services.grader.__main__ import main
    from prism.services.grader.pool import preload

    preload("prism.cli")
    main()


@app.command("rollouts")
def serve_rollouts() -> None:
    """A rollout worker: prompts from the stream, sampled, scored and graded, groups back."""
    from prism.services.rollouts.__main__ import main

    main()


@app.command("console")
def serve_console() -> None:
    """The console's pages and API, over a folder of runs and a database of jobs."""
    from prism.services.console.__main__ import main

    main()


@app.command("jobs")
def serve_jobs() -> None:
    """A worker of the console, which runs its jobs."""
    from prism.services.console.worker import main

    main()
