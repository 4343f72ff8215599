from protos.error.v1 import error_pb2 as _error_pb2
from protos.tensor.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("router_id", "model_fingerprint")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    model_fingerprint: str
    def __init__(self, router_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("shard", "segment_ids", "lease_ms")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    shard: DescribeResponse
    segment_ids: _containers.RepeatedScalarFieldContainer[int]
    lease_ms: int
    def __init__(self, shard: _Optional[_Union[DescribeResponse, _Mapping]] = ..., segment_ids: _Optional[_Iterable[int]] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("step_id", "layer", "appends", "queries", "traceparent")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    APPENDS_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    layer: int
    appends: _containers.RepeatedCompositeFieldContainer[Append]
    queries: _containers.RepeatedCompositeFieldContainer[Query]
    traceparent: str
    def __init__(self, step_id: _Optional[int] = ..., layer: _Optional[int] = ..., appends: _Optional[_Iterable[_Union[Append, _Mapping]]] = ..., queries: _Optional[_Iterable[_Union[Query, _Mapping]]] = ..., traceparent: _Optional[str] = ...) -> None: ...

class Append(_message.Message):
    __slots__ = ("segment_id", "start", "keys", "values")
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    segment_id: int
    start: int
    keys: _tensor_pb2.Tensor
    values: _tensor_pb2.Tensor
    def __init__(self, segment_id: _Optional[int] = ..., start: _Optional[int] = ..., keys: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., values: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("queries", "views")
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    queries: _tensor_pb2.Tensor
    views: _containers.RepeatedCompositeFieldContainer[View]
    def __init__(self, queries: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., views: _Optional[_Iterable[_Union[View, _Mapping]]] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("segment_id", "num_tokens")
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    segment_id: int
    num_tokens: int
    def __init__(self, segment_id: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("step_id", "partials", "free_tokens", "compute_us")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    PARTIALS_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    partials: _containers.RepeatedCompositeFieldContainer[Partial]
    free_tokens: int
    compute_us: int
    def __init__(self, step_id: _Optional[int] = ..., partials: _Optional[_Iterable[_Union[Partial, _Mapping]]] = ..., free_tokens: _Optional[int] = ..., compute_us: _Optional[int] = ...) -> None: ...

class Partial(_message.Message):
    __slots__ = ("outputs", "log_sums")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOG_SUMS_FIELD_NUMBER: _ClassVar[int]
    outputs: _tensor_pb2.Tensor
    log_sums: _tensor_pb2.Tensor
    def __init__(self, outputs: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., log_sums: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ...) -> None: ...

class StepError(_message.Message):
    __slots__ = ("step_id", "code", "detail")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    code: int
    detail: _error_pb2.ErrorDetail
    def __init__(self, step_id: _Optional[int] = ..., code: _Optional[int] = ..., detail: _Optional[_Union[_error_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class Release(_message.Message):
    __slots__ = ("segment_ids",)
    SEGMENT_IDS_FIELD_NUMBER: _ClassVar[int]
    segment_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, segment_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Room(_message.Message):
    __slots__ = ("free_tokens",)
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    free_tokens: int
    def __init__(self, free_tokens: _Optional[int] = ...) -> None: ...

class AttendRequest(_message.Message):
    __slots__ = ("hello", "step", "release")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    step: Step
    release: Release
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ..., release: _Optional[_Union[Release, _Mapping]] = ...) -> None: ...

class AttendResponse(_message.Message):
    __slots__ = ("welcome", "result", "error", "room")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    result: StepResult
    error: StepError
    room: Room
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., error: _Optional[_Union[StepError, _Mapping]] = ..., room: _Optional[_Union[Room, _Mapping]] = ...) -> None: ...

class FillRequest(_message.Message):
    __slots__ = ("router_id", "segment_id", "num_tokens")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    segment_id: int
    num_tokens: int
    def __init__(self, router_id: _Optional[str] = ..., segment_id: _Optional[int] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class FillResponse(_message.Message):
    __slots__ = ("free_tokens",)
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    free_tokens: int
    def __init__(self, free_tokens: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("shard_id", "model_fingerprint", "total_tokens", "free_tokens", "token_bytes", "num_segments")
    SHARD_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FREE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    shard_id: str
    model_fingerprint: str
    total_tokens: int
    free_tokens: int
    token_bytes: int
    num_segments: int
    def __init__(self, shard_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., total_tokens: _Optional[int] = ..., free_tokens: _Optional[int] = ..., token_bytes: _Optional[int] = ..., num_segments: _Optional[int] = ...) -> None: ...
