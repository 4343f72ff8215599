from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Element(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ELEMENT_UNSPECIFIED: _ClassVar[Element]
    ELEMENT_FLOAT32: _ClassVar[Element]
    ELEMENT_BFLOAT16: _ClassVar[Element]
    ELEMENT_FLOAT16: _ClassVar[Element]
    ELEMENT_INT8: _ClassVar[Element]

class Matrix(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MATRIX_UNSPECIFIED: _ClassVar[Matrix]
    MATRIX_GATE_UP: _ClassVar[Matrix]
    MATRIX_DOWN: _ClassVar[Matrix]
ELEMENT_UNSPECIFIED: Element
ELEMENT_FLOAT32: Element
ELEMENT_BFLOAT16: Element
ELEMENT_FLOAT16: Element
ELEMENT_INT8: Element
MATRIX_UNSPECIFIED: Matrix
MATRIX_GATE_UP: Matrix
MATRIX_DOWN: Matrix

class FetchRequest(_message.Message):
    __slots__ = ("model_fingerprint", "expert_id", "element", "tokens", "first_layer")
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    EXPERT_ID_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    model_fingerprint: str
    expert_id: int
    element: Element
    tokens: Element
    first_layer: int
    def __init__(self, model_fingerprint: _Optional[str] = ..., expert_id: _Optional[int] = ..., element: _Optional[_Union[Element, str]] = ..., tokens: _Optional[_Union[Element, str]] = ..., first_layer: _Optional[int] = ...) -> None: ...

class MatrixHeader(_message.Message):
    __slots__ = ("layer", "matrix", "element", "num_rows", "num_columns", "scales", "scales_crc32")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    ELEMENT_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SCALES_FIELD_NUMBER: _ClassVar[int]
    SCALES_CRC32_FIELD_NUMBER: _ClassVar[int]
    layer: int
    matrix: Matrix
    element: Element
    num_rows: int
    num_columns: int
    scales: bytes
    scales_crc32: int
    def __init__(self, layer: _Optional[int] = ..., matrix: _Optional[_Union[Matrix, str]] = ..., element: _Optional[_Union[Element, str]] = ..., num_rows: _Optional[int] = ..., num_columns: _Optional[int] = ..., scales: _Optional[bytes] = ..., scales_crc32: _Optional[int] = ...) -> None: ...

class MatrixChunk(_message.Message):
    __slots__ = ("offset", "data", "crc32")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    crc32: int
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ..., crc32: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: MatrixHeader
    chunk: MatrixChunk
    def __init__(self, header: _Optional[_Union[MatrixHeader, _Mapping]] = ..., chunk: _Optional[_Union[MatrixChunk, _Mapping]] = ...) -> None: ...
