from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    STATUS_OK: _ClassVar[Status]
    STATUS_INVALID_FORMAT: _ClassVar[Status]
    STATUS_TOO_LONG: _ClassVar[Status]
    STATUS_UNPARSEABLE_ANSWER: _ClassVar[Status]
    STATUS_UNPARSEABLE_GOLD: _ClassVar[Status]
    STATUS_TIMEOUT: _ClassVar[Status]
    STATUS_ERROR: _ClassVar[Status]
STATUS_UNSPECIFIED: Status
STATUS_OK: Status
STATUS_INVALID_FORMAT: Status
STATUS_TOO_LONG: Status
STATUS_UNPARSEABLE_ANSWER: Status
STATUS_UNPARSEABLE_GOLD: Status
STATUS_TIMEOUT: Status
STATUS_ERROR: Status

class Part(_message.Message):
    __slots__ = ("text", "image_sha256")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    text: str
    image_sha256: str
    def __init__(self, text: _Optional[str] = ..., image_sha256: _Optional[str] = ...) -> None: ...

class Message(_message.Message):
    __slots__ = ("role", "parts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, role: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class Prompt(_message.Message):
    __slots__ = ("id", "messages", "gold", "kind", "teacher", "meta_json", "equivalent_answers", "options_json")
    ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    GOLD_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEACHER_FIELD_NUMBER: _ClassVar[int]
    META_JSON_FIELD_NUMBER: _ClassVar[int]
    EQUIVALENT_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_JSON_FIELD_NUMBER: _ClassVar[int]
    id: str
    messages: _containers.RepeatedCompositeFieldContainer[Message]
    gold: str
    kind: str
    teacher: str
    meta_json: str
    equivalent_answers: _containers.RepeatedScalarFieldContainer[str]
    options_json: str
    def __init__(self, id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[Message, _Mapping]]] = ..., gold: _Optional[str] = ..., kind: _Optional[str] = ..., teacher: _Optional[str] = ..., meta_json: _Optional[str] = ..., equivalent_answers: _Optional[_Iterable[str]] = ..., options_json: _Optional[str] = ...) -> None: ...

class Sampling(_message.Message):
    __slots__ = ("n", "temperature", "max_tokens", "seed")
    N_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    n: int
    temperature: float
    max_tokens: int
    seed: int
    def __init__(self, n: _Optional[int] = ..., temperature: _Optional[float] = ..., max_tokens: _Optional[int] = ..., seed: _Optional[int] = ...) -> None: ...

class RolloutRequest(_message.Message):
    __slots__ = ("prompt", "sampling", "stage", "step", "attempt", "position", "min_policy_version", "min_expert_version", "experts", "grade", "rules_json", "traceparent")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    MIN_POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    MIN_EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPERTS_FIELD_NUMBER: _ClassVar[int]
    GRADE_FIELD_NUMBER: _ClassVar[int]
    RULES_JSON_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    prompt: Prompt
    sampling: Sampling
    stage: str
    step: int
    attempt: int
    position: int
    min_policy_version: int
    min_expert_version: int
    experts: _containers.RepeatedScalarFieldContainer[str]
    grade: bool
    rules_json: str
    traceparent: str
    def __init__(self, prompt: _Optional[_Union[Prompt, _Mapping]] = ..., sampling: _Optional[_Union[Sampling, _Mapping]] = ..., stage: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., position: _Optional[int] = ..., min_policy_version: _Optional[int] = ..., min_expert_version: _Optional[int] = ..., experts: _Optional[_Iterable[str]] = ..., grade: _Optional[bool] = ..., rules_json: _Optional[str] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Score(_message.Message):
    __slots__ = ("expert", "expert_version", "status", "value", "detail")
    EXPERT_FIELD_NUMBER: _ClassVar[int]
    EXPERT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    expert: str
    expert_version: int
    status: Status
    value: float
    detail: str
    def __init__(self, expert: _Optional[str] = ..., expert_version: _Optional[int] = ..., status: _Optional[_Union[Status, str]] = ..., value: _Optional[float] = ..., detail: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("status", "accuracy", "format", "reward", "extracted", "detail")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    EXTRACTED_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    status: Status
    accuracy: float
    format: float
    reward: float
    extracted: str
    detail: str
    def __init__(self, status: _Optional[_Union[Status, str]] = ..., accuracy: _Optional[float] = ..., format: _Optional[float] = ..., reward: _Optional[float] = ..., extracted: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class VersionRun(_message.Message):
    __slots__ = ("policy_version", "tokens")
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    policy_version: int
    tokens: int
    def __init__(self, policy_version: _Optional[int] = ..., tokens: _Optional[int] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("text", "token_ids", "logprobs", "finish_reason", "scores", "verdict", "versions")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    finish_reason: str
    scores: _containers.RepeatedCompositeFieldContainer[Score]
    verdict: Verdict
    versions: _containers.RepeatedCompositeFieldContainer[VersionRun]
    def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., finish_reason: _Optional[str] = ..., scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[VersionRun, _Mapping]]] = ...) -> None: ...

class RolloutGroup(_message.Message):
    __slots__ = ("request", "worker", "policy_version", "prompt_token_ids", "samples", "teacher_scores", "generate_seconds", "judge_seconds", "judged_at")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    TEACHER_SCORES_FIELD_NUMBER: _ClassVar[int]
    GENERATE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JUDGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_AT_FIELD_NUMBER: _ClassVar[int]
    request: RolloutRequest
    worker: str
    policy_version: int
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    teacher_scores: _containers.RepeatedCompositeFieldContainer[Score]
    generate_seconds: float
    judge_seconds: float
    judged_at: float
    def __init__(self, request: _Optional[_Union[RolloutRequest, _Mapping]] = ..., worker: _Optional[str] = ..., policy_version: _Optional[int] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., teacher_scores: _Optional[_Iterable[_Union[Score, _Mapping]]] = ..., generate_seconds: _Optional[float] = ..., judge_seconds: _Optional[float] = ..., judged_at: _Optional[float] = ...) -> None: ...
