"""A run's TOML file: what is wrong with it is said by file and key, before anything starts."""

import json
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from prism import config as package
from prism import settings
from prism.clients import endpoints
from prism.clients.teacher import config as of_teacher
from prism.config import AlignConfig, RlvrConfig, RunConfig, SftConfig, as_toml, load_config, load_saved, save_resolved
from prism.curation import config as of_curation
from prism.curation import mine as of_mining
from prism.curation.config import CurateConfig
from prism.errors import ConfigError
from prism.services.experts import settings as of_experts
from prism.services.grader import settings as of_grader
from prism.services.grader.protocol import GradeRules
from prism.services.policy import settings as of_policy
from prism.services.rollouts import settings as of_rollouts
from prism.trainer.run import compare, launch

GAME = """
[stages.game]
kind = "align"
steps = 4
warmup_steps = 2
warmup_prompts = 2
rollouts = { data = "teacher.jsonl", prompts = 4, n = 2, max_tokens = 64 }
policy = { optimizer = { lr = 1e-4 } }
experts = { optimizer = { lr = 1e-3 } }
"""
MINIMAL = f"""
name = "small"
model = "model"

[stages.first]
kind = "sft"
data = ["demos.jsonl"]
steps = 10
batch = 4
optimizer = {{ lr = 1e-3 }}
{GAME}
[stages.rl]
kind = "rlvr"
steps = 4
rollouts = {{ data = "prompts.jsonl", prompts = 4, n = 2, max_tokens = 64 }}
policy = {{ optimizer = {{ lr = 1e-4 }} }}

[evaluate]
data = "test.jsonl"
max_tokens = 64

[stack]
max_model_len = 128
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def test_a_minimal_file_gets_the_defaults(file: Path) -> None:
    config = load_config(file)
    sft, align, rlvr = config.stages.values()
    assert isinstance(sft, SftConfig)
    assert isinstance(align, AlignConfig)
    assert isinstance(rlvr, RlvrConfig)
    assert list(config.stages) == ["first", "game", "rl"]
    assert (config.seed, config.dtype, config.on_bad_row, config.keep_checkpoints) == (0, "float32", "skip", 2)
    assert config.run_dir == Path("runs/small")
    assert align.rollouts.staleness == 0
    assert align.rollouts.temperature == 1.0
    assert (align.policy.minibatches, align.policy.epochs) == (1, 1)
    assert align.experts.skip_above_accuracy == 1.0
    assert align.experts.mixture is None
    assert (align.experts.load_balance, align.experts.load_balance_online, align.experts.mismatch) == (0.01, 0, 0)
    assert align.alpha == 0.5
    assert rlvr.loss == "grpo"
    assert config.push.deadline_seconds == 120


def test_alignments_of_a_run_are_judged_one_way_which_its_services_read(file: Path, tmp_path: Path) -> None:
    assert load_config(file).run_limits.model_dump()["expert_section"] == "own"
    whole = ["stages.game.experts.section=whole", "stages.game.experts.pictures=false"]
    config = load_config(file, whole)
    limits = config.run_limits
    assert (limits.expert_section, limits.expert_pictures) == ("whole", False)
    limits.write(tmp_path)
    token = {"token": "data-token-0123456789", "admin_token": "admin-token-0123456789"}
    service = token | {"port": 1, "expert": "perception"} | dict.fromkeys(("model", "weights_root", "state_dir"), "x")
    made = settings.load_settings(of_experts.ExpertSettings, **service, run_limits=tmp_path / "limits.json")
    assert (made.expert_section, made.expert_pictures) == ("whole", False)
    with pytest.raises(ConfigError, match=r"PRISM_EXPERT_SECTION: own here, .*: set experts.section of each alignment"):
        settings.load_settings(
            of_experts.ExpertSettings, **service, run_limits=tmp_path / "limits.json", expert_section="own"
        )
    file.write_text(MINIMAL.replace("[stages.rl]", GAME.replace("stages.game", "stages.more") + "\n[stages.rl]"))
    load_config(file, [*whole, "stages.more.experts.section=whole", "stages.more.experts.pictures=false"])
    with pytest.raises(ConfigError, match=r"stages.more.experts.pictures: alignments of one run share"):
        load_config(file, [*whole, "stages.more.experts.section=whole"])


def test_a_mixture_has_the_published_shape_unless_told_otherwise(file: Path) -> None:
    stage = load_config(file, ["stages.game.experts.mixture={}"]).stages["game"]
    assert isinstance(stage, AlignConfig)
    assert stage.experts.mixture
    assert stage.experts.mixture.model_dump() == {"experts": 4, "top_k": 2, "noise": 0.01}


def test_the_demo_loads() -> None:
    config = load_config(Path("configs/demo.toml"))
    assert [stage.kind for stage in config.stages.values()] == ["sft", "align", "rlvr"]
    assert config.prepare is not None
    assert config.prepare.script.is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.game.experts.mixture={top_k = 5}",
            "stages.game.experts.mixture: top_k: a token cannot be sent to 5 of 4 experts",
        ),
        (
            'evaluate.disentangle={words = [["one"]]}',
            "evaluate.disentangle: words: ['one'] holds no other word to put in place of one",
        ),
        (
            "stages.game.experts={optimizer = {lr = 1}, pictures = false, mismatch = 1}",
            "stages.game.experts: pictures: grounding and mismatch teach which response belongs to a picture",
        ),
        (
            "stages.game.experts={optimizer = {lr = 1}, pictures = false, grounding = {epochs = 1}}",
            "stages.game.experts: pictures: grounding and mismatch teach",
        ),
        (
            "stages.game.experts={optimizer = {lr = 1}, pictures = false, lora = {vision = true}}",
            "stages.game.experts: pictures: without them lora.vision has nothing to learn from",
        ),
        (
            "stages.game.experts={optimizer = {lr = 1}, frozen = true, skip_above_accuracy = 0.9}",
            "stages.game.experts: frozen: skip_above_accuracy and load_balance_online are for experts that learn",
        ),
        ("stages.game.experts.section=caption", "stages.game.experts.section: Input should be 'own' or 'whole'"),
        ("stages.rl.experts.pictures=false", "stages.rl.experts: is not a known key"),
        ("evaluate.looks.every=0", "evaluate.looks.every: "),
        ("bogus=1", "bogus: is not a known key"),
        ("stages.game.bogus=1", "stages.game.bogus: is not a known key"),
        ("stages.game.rollouts.bogus=1", "stages.game.rollouts.bogus: is not a known key"),
        ("stages.game.steps=0", "stages.game.steps: Input should be greater than 0 (given: 0)"),
        ("stages.game.rollouts.n=1", "stages.game.rollouts.n: Input should be greater than or equal to 2 (given: 1)"),
        ("stages.game.rollouts.temperature=0", "stages.game.rollouts.temperature: "),
        ("stages.game.rollouts.staleness=-1", "stages.game.rollouts.staleness: "),
        ("stages.game.alpha=1.5", "stages.game.alpha: "),
        ("stages.first.optimizer.lr=-1", "stages.first.optimizer.lr: "),
        ("stages.first.optimizer.lr=inf", "stages.first.optimizer.lr: "),
        ("stages.first.optimizer.lr=nan", "stages.first.optimizer.lr: "),
        ("stages.first.optimizer.betas=[0.9, 1.0]", "stages.first.optimizer.betas.1: "),
        ("stages.first.optimizer.schedule=steep", "stages.first.optimizer.schedule: "),
        ("stages.first.kind=sfft", "stages.first: Input tag 'sfft'"),
        ("stages.first.target=answer", "stages.first.target: "),
        ("stages.first.data=[]", "stages.first.data: "),
        ("stages={}", "stages: "),
        ("name=../escape", "name: "),
        ("name=", "name: "),
        ("on_bad_row=ignore", "on_bad_row: "),
        ("stack.base_port=80", "stack.base_port: "),
        ("stages.game.policy.minibatches=3", "stages.game.policy.minibatches: 3 does not divide rollouts.prompts = 4"),
        ("device=cuda", "dtype: on a GPU the learners' attention computes in bfloat16"),
        ("stages.game.policy.importance_cap=0", "stages.game.policy.importance_cap: "),
        ("stages.rl.kl_coef=-1", "stages.rl.kl_coef: "),
        ("stages.game.kl_coef=0.1", "stages.game.kl_coef: is not a known key"),  # alignment has none
        ("stages.first.optimizer.max_skipped=0", "stages.first.optimizer.max_skipped: "),
        ("stages.rl.overlong_buffer=65", "stages.rl.overlong_buffer: 65 is more than rollouts.max_tokens = 64"),
        ("grader.unparseable=zero", "grader.unparseable: "),
        ('grader.extract=["magic"]', "grader.extract.0: Input should be answer, boxed"),
        ('grader.extract=["boxed", "pattern:("]', "grader.extract.1: the pattern is none of RE2's: missing ): ("),
        (
            "push.in_flight=true",
            "push.in_flight: stages.game.rollouts.staleness is 0, every token of the learner's own version: set",
        ),
        ("stages.rl.rollouts.max_tokens=128", "stages.rl.rollouts.max_tokens: 128 leaves no room"),
    ],
)
def test_what_cannot_be_is_refused_by_file_and_key(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    assert str(refused.value).startswith(f"{file}: {message}")


def test_weights_come_under_answers_in_flight_where_every_stage_may_be_stale(file: Path) -> None:
    stale = ["push.in_flight=true", "stages.game.rollouts.staleness=1"]
    with pytest.raises(ConfigError, match=r"push.in_flight: stages.rl.rollouts.staleness is 0"):
        load_config(file, stale)
    assert load_config(file, [*stale, "stages.rl.rollouts.staleness=2"]).push.in_flight
    assert not load_config(file).push.in_flight


@pytest.mark.parametrize(
    "rounding",
    [["dtype=bfloat16"], ["dtype=bfloat16", "device=cuda", "stack.device=cuda"], ["stack.device=cuda"],
     ["stack.policy_options={dtype = 'float16'}"]],
)  # fmt: skip
def test_gspo_needs_a_cap_where_sampler_or_learner_round(file: Path, rounding: list[str], tmp_path: Path) -> None:
    gspo = ["stages.rl.loss=gspo", *rounding]
    with pytest.raises(ConfigError, match=r"run\.toml: stages\.rl\.policy\.importance_cap: .*importance_cap = 2"):
        load_config(file, gspo)
    capped = load_config(file, [*gspo, "stages.rl.policy.importance_cap=2"])
    assert capped.stages["rl"].kind == "rlvr"
    load_config(file, ["stages.rl.loss=gspo"])  # in float32 nothing is rounded
    load_config(file, ["stages.rl.loss=dapo", *rounding])  # whose clip is 500 times as wide
    # What an earlier release began is still read, to be exported or compared.
    old = load_config(file, [*gspo, "stages.rl.policy.importance_cap=2", f"runs_dir={tmp_path}"])
    old.run_dir.mkdir()
    values = old.model_dump(mode="json")
    values["stages"]["rl"]["policy"]["importance_cap"] = None
    (old.run_dir / "config.json").write_text(json.dumps(values))
    assert load_saved(old.run_dir).dtype == old.dtype


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("sed=1", "sed: is not a known key; did you mean seed?"),
        ("stages.rl.kl_coeff=1", "stages.rl.kl_coeff: is not a known key; did you mean kl_coef?"),
        ("stages.game.kl_coeff=1", "stages.game.kl_coeff: is not a known key"),  # alignment has none
        ("stages.game.rollouts.prompt=1", "stages.game.rollouts.prompt: is not a known key; did you mean prompts?"),
        (
            "stages.game.experts.mixture={topk = 2}",
            "stages.game.experts.mixture.topk: is not a known key; did you mean",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_that_may_stand_there(file: Path, override: str, meant: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(file, [override])
    assert str(refused.value).startswith(f"{file}: {meant}")
    assert ("did you mean" in str(refused.value)) == ("did you mean" in meant)


def test_rules_that_are_the_graders_own_are_not_sent(file: Path) -> None:
    assert load_config(file).grader.rules_json() == ""
    own = load_config(file, ["grader.unparseable=masked", 'grader.extract=["pattern:A: (.+)"]']).grader
    sent = GradeRules.model_validate_json(own.rules_json())
    assert (sent.unparseable, sent.extract, sent.format) == ("masked", ["pattern:A: (.+)"], "required")
    assert GradeRules.model_validate_json(own.rules_json(held_out=True)).unparseable == "wrong"


def models() -> list[type[BaseModel]]:
    """Every table of a configuration, and everything that reads PRISM_* variables."""
    modules = [
        package,
        settings,
        endpoints,
        of_curation,
        of_mining,
        of_teacher,
        of_experts,
        of_grader,
        of_policy,
        of_rollouts,
        compare,
        launch,
    ]
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return sorted((m for m in found if issubclass(m, BaseModel) and m.model_fields), key=lambda m: m.__name__)


@pytest.mark.parametrize("model", models(), ids=lambda model: model.__name__)
def test_every_key_says_what_it_does(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_every_table_of_a_run_is_looked_at_for_docstrings() -> None:
    def inside(kind: object) -> set[type[BaseModel]]:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return {kind}.union(*(inside(field.annotation) for field in kind.model_fields.values()))
        return set[type[BaseModel]]().union(*map(inside, get_args(kind)))

    assert inside(RunConfig) | inside(CurateConfig) <= set(models())


def test_every_problem_is_named_on_a_line_of_its_own(file: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config(file, ["bogus=1", "seed=x", "stages.rl.steps=0"])
    lines = str(refused.value).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{file}: ") for line in lines)


def test_a_missing_key_is_named(file: Path) -> None:
    file.write_text(MINIMAL.replace('model = "model"\n', ""))
    with pytest.raises(ConfigError, match=r"run\.toml: model: is not set"):
        load_config(file)


@pytest.mark.parametrize("content", [b"name = ", b'name = "a"\nname = "b"\n', b"\xff\xfe", b"= 1"])
def test_a_file_that_is_no_toml_is_refused_by_name(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml: not valid TOML"):
        load_config(file)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml does not exist"):
        load_config(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


def test_overrides_reach_nested_keys_and_the_last_one_counts(file: Path) -> None:
    config = load_config(
        file,
        [
            "seed=1",
            "seed=7",
            "name=bare-word",
            'model="quoted = value"',
            "stages.first.optimizer.lr=5e-4",
            "stages.first.data=['a', 'b']",
            "push.probe_tolerance=0.5",
            "stages.first.autocast_bf16=true",
        ],
    )
    first = config.stages["first"]
    assert isinstance(first, SftConfig)
    assert (config.seed, config.name, config.model) == (7, "bare-word", "quoted = value")
    assert (first.optimizer.lr, first.data, first.autocast_bf16) == (5e-4, ["a", "b"], True)
    assert config.push.probe_tolerance == 0.5


@pytest.mark.parametrize("override", ["seed", "=1", "a..b=1", ".seed=1", "seed.x=1", "stages.first.steps.x=1"])
def test_an_override_that_names_no_key_is_refused(file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        load_config(file, [override])


def test_a_run_may_bring_its_data_in_its_folder_or_name_it_from_here(file: Path, tmp_path: Path) -> None:
    config = load_config(file, [f"runs_dir={tmp_path}"])
    assert config.path("data/x.jsonl") == Path("data/x.jsonl")
    (config.run_dir / "data").mkdir(parents=True)
    (config.run_dir / "data" / "x.jsonl").touch()
    assert config.path("data/x.jsonl") == config.run_dir / "data" / "x.jsonl"


def test_what_was_resolved_loads_again(file: Path, tmp_path: Path) -> None:
    config = load_config(file, [f"runs_dir={tmp_path}", "seed=3"])
    saved = json.loads(save_resolved(config).read_text())
    assert saved["seed"] == 3
    assert saved["stages"]["game"]["policy"]["minibatches"] == 1
    assert RunConfig.model_validate(saved) == config
    assert RunConfig.model_validate(tomllib.loads(MINIMAL)) != config


def test_what_was_resolved_can_be_written_as_toml_and_run_again(file: Path) -> None:
    config = load_config(
        file,
        [
            'prepare={script = "x.py", options = {"a b" = "ü \\"q\\" \\n", n = 1e-7}}',
            "stages.game.experts.mixture={}",
            'evaluate.disentangle={words = [["one", "two"]]}',
        ],
    )
    again = file.with_name("again.toml")
    again.write_text(as_toml(config))
    assert load_config(again) == config
    assert "seed = 0" in again.read_text().splitlines()  # defaults are said, too
