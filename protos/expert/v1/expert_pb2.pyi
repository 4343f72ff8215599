from protos.error.v1 import error_pb2 as _error_pb2
from protos.tensor.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hello(_message.Message):
    __slots__ = ("router_id", "model_fingerprint", "shared_memory", "stands_back", "device_memory")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    STANDS_BACK_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    model_fingerprint: str
    shared_memory: SharedMemory
    stands_back: bool
    device_memory: DeviceMemory
    def __init__(self, router_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ..., stands_back: bool = ..., device_memory: _Optional[_Union[DeviceMemory, _Mapping]] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("pid", "fd", "nonce", "num_bytes")
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    pid: int
    fd: int
    nonce: bytes
    num_bytes: int
    def __init__(self, pid: _Optional[int] = ..., fd: _Optional[int] = ..., nonce: _Optional[bytes] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class DeviceMemory(_message.Message):
    __slots__ = ("handle", "nonce", "num_bytes")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    handle: bytes
    nonce: bytes
    num_bytes: int
    def __init__(self, handle: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("replica", "shares_memory", "shares_device_memory", "device_memory_refusal")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    SHARES_MEMORY_FIELD_NUMBER: _ClassVar[int]
    SHARES_DEVICE_MEMORY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    replica: DescribeResponse
    shares_memory: bool
    shares_device_memory: bool
    device_memory_refusal: str
    def __init__(self, replica: _Optional[_Union[DescribeResponse, _Mapping]] = ..., shares_memory: bool = ..., shares_device_memory: bool = ..., device_memory_refusal: _Optional[str] = ...) -> None: ...

class Dispatch(_message.Message):
    __slots__ = ("dispatch_id", "placement_version", "layer", "expert_ids", "token_counts", "hidden", "deadline_ms", "checksum", "traceparent")
    DISPATCH_ID_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNTS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    dispatch_id: int
    placement_version: int
    layer: int
    expert_ids: _containers.RepeatedScalarFieldContainer[int]
    token_counts: _containers.RepeatedScalarFieldContainer[int]
    hidden: _tensor_pb2.Tensor
    deadline_ms: int
    checksum: int
    traceparent: str
    def __init__(self, dispatch_id: _Optional[int] = ..., placement_version: _Optional[int] = ..., layer: _Optional[int] = ..., expert_ids: _Optional[_Iterable[int]] = ..., token_counts: _Optional[_Iterable[int]] = ..., hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., deadline_ms: _Optional[int] = ..., checksum: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class DispatchResult(_message.Message):
    __slots__ = ("dispatch_id", "hidden", "queue_us", "compute_us", "load", "checksum")
    DISPATCH_ID_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_US_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    dispatch_id: int
    hidden: _tensor_pb2.Tensor
    queue_us: int
    compute_us: int
    load: Load
    checksum: int
    def __init__(self, dispatch_id: _Optional[int] = ..., hidden: _Optional[_Union[_tensor_pb2.Tensor, _Mapping]] = ..., queue_us: _Optional[int] = ..., compute_us: _Optional[int] = ..., load: _Optional[_Union[Load, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class DispatchError(_message.Message):
    __slots__ = ("dispatch_id", "code", "detail")
    DISPATCH_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    dispatch_id: int
    code: int
    detail: _error_pb2.ErrorDetail
    def __init__(self, dispatch_id: _Optional[int] = ..., code: _Optional[int] = ..., detail: _Optional[_Union[_error_pb2.ErrorDetail, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("queued_tokens", "total_tokens")
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queued_tokens: int
    total_tokens: int
    def __init__(self, queued_tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ...) -> None: ...

class DispatchRequest(_message.Message):
    __slots__ = ("hello", "dispatch")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    dispatch: Dispatch
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., dispatch: _Optional[_Union[Dispatch, _Mapping]] = ...) -> None: ...

class DispatchResponse(_message.Message):
    __slots__ = ("welcome", "result", "error")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    result: DispatchResult
    error: DispatchError
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., result: _Optional[_Union[DispatchResult, _Mapping]] = ..., error: _Optional[_Union[DispatchError, _Mapping]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("replica_id", "model_fingerprint", "layers", "expert_ids", "dtype", "hidden_size", "weight_bytes", "loaded_bytes", "draining", "load", "expert_tokens")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    EXPERT_IDS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    EXPERT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model_fingerprint: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    expert_ids: _containers.RepeatedScalarFieldContainer[int]
    dtype: _tensor_pb2.Dtype
    hidden_size: int
    weight_bytes: int
    loaded_bytes: int
    draining: bool
    load: Load
    expert_tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, replica_id: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., expert_ids: _Optional[_Iterable[int]] = ..., dtype: _Optional[_Union[_tensor_pb2.Dtype, str]] = ..., hidden_size: _Optional[int] = ..., weight_bytes: _Optional[int] = ..., loaded_bytes: _Optional[int] = ..., draining: bool = ..., load: _Optional[_Union[Load, _Mapping]] = ..., expert_tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("drained", "remaining")
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    drained: bool
    remaining: int
    def __init__(self, drained: bool = ..., remaining: _Optional[int] = ...) -> None: ...
