"""``prism experts``: making discriminator experts outside a run. (Everything heavy is imported inside the commands.)"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

experts = typer.Typer(
    no_args_is_help=True,
    help="Make discriminator experts: a mixture of experts from a dense Qwen3-VL, warmed up on pairs of responses.",
)

Dtype = Annotated[Literal["float32", "bfloat16"], typer.Option(help="of the weights")]
ModelArgument = Annotated[str, typer.Argument(help="Hugging Face folder or hub name of a Qwen3-VL")]


@experts.command()
def upcycle(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist yet")],
    count: Annotated[int, typer.Option("--experts", min=2, help="experts that each MLP becomes")] = 4,
    top_k: Annotated[int, typer.Option(min=1, help="experts a token is sent to")] = 2,
    noise: Annotated[
        float, typer.Option(min=0, help="standard deviation of what is added to each expert's dense weights")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="of noise, routers and head")] = 0,
    dtype: Dtype = "float32",
) -> None:
    """A dense Qwen3-VL into a mixture-of-experts one with a scalar head: sparse upcycling.

    Each MLP becomes several experts, each the dense weights plus noise; a new router sends a token to a few of them
    and weighs these to sum to 1. With --noise 0 the mixture computes exactly what the dense model does. OUT is an
    ordinary Hugging Face folder with the processor in it: warm it up, serve it, or name it in a run.
    """
    from prism.trainer.run.make_experts import upcycle_folder

    upcycle_folder(
        model, out, experts=count, top_k=top_k, noise=noise, seed=seed, dtype=dtype, console=Console(highlight=False)
    )


@experts.command()
def warmup(
    model: ModelArgument,
    pairs: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines or Parquet: messages, teacher and response (the policy's, which --mismatch does without)"
        ),
    ],
    out: Annotated[Path, typer.Argument(help="folder to write; it must not exist yet")],
    expert: Annotated[
        Literal["perception", "reasoning", "discriminator"],
        typer.Option(help="which section of responses it judges; discriminator: one network judges both"),
    ],
    epochs: Annotated[float, typer.Option(help="passes over the rows")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="rows of an update")] = 64,
    lr: Annotated[float, typer.Option(help="highest learning rate; it climbs over 10 % and falls as a cosine")] = 1e-5,
    weight_decay: Annotated[float, typer.Option(help="AdamW's")] = 0.01,
    mismatch: Annotated[
        float, typer.Option(min=0, help="weight of pairs of the teacher's response and its response to another row")
    ] = 0.0,
    section: Annotated[
        Literal["own", "whole"], typer.Option(help="what it judges of a response: its section, or all three")
    ] = "own",
    pictures: Annotated[bool, typer.Option(help="whether it is shown the pictures of PAIRS")] = True,
    load_balance: Annotated[float, typer.Option(help="weight of the routers' load balance")] = 0.01,
    label_smoothing: Annotated[float, typer.Option(help="chance that teacher and policy are taken as swapped")] = 0.0,
    margin: Annotated[float, typer.Option(help="gap by which the teacher must lead")] = 0.0,
    dropout: Annotated[float, typer.Option(help="of what the head reads")] = 0.1,
    freeze: Annotated[
        list[str] | None, typer.Option(help="a part that is not trained, such as model.visual; give it for each")
    ] = None,
    micro_batch_tokens: Annotated[
        int, typer.Option(min=1, help="tokens of one forward and backward pass: changes memory, hardly results")
    ] = 16_384,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="updates between checkpoints")] = 100,
    on_bad_row: Annotated[Literal["skip", "fail"], typer.Option(help="what a row that cannot be used does")] = "skip",
    image_root: Annotated[
        Path | None,
        typer.Option("--image-root", help="folder that images of PAIRS must lie in; without it, the folder of PAIRS"),
    ] = None,
    seed: Annotated[int, typer.Option(help="of the order of pairs, of dropout and of a new head")] = 0,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="where to compute")] = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Train one expert on pairs of a teacher's and a policy's response to the same prompt.

    Bradley-Terry loss and AdamW, with the routers' load balance. With --mismatch the expert also learns which response
    belongs to a prompt, which takes the teacher's text alone. Interrupted, the same command goes on from the last
    checkpoint, which lies in OUT.partial until OUT is finished. OUT is an ordinary Hugging Face folder; a line for
    each update is in its metrics.jsonl.
    """
    from prism.trainer.stages.warmup import WarmupConfig, warm_up

    learner = {
        "optimizer": {"lr": lr, "schedule": "cosine", "warmup_fraction": 0.1, "weight_decay": weight_decay},
        "shared": expert == "discriminator",
        "mismatch": mismatch,
        "section": section,
        "pictures": pictures,
        "load_balance": load_balance,
        "label_smoothing": label_smoothing,
        "margin": margin,
        "dropout": dropout,
        "freeze": freeze or [],
        "micro_batch_tokens": micro_batch_tokens,
        "score_regularisation": 0.0,  # it belongs to the online game
    }
    config = WarmupConfig.of(
        model=model,
        pairs=pairs,
        expert=expert,
        epochs=epochs,
        batch=batch,
        learner=learner,
        checkpoint_every=checkpoint_every,
        on_bad_row=on_bad_row,
        image_root=image_root,
        seed=seed,
        device=device,
        dtype=dtype,
    )
    warm_up(config, out, Console(highlight=False))
