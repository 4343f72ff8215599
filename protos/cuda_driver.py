"""NVIDIA's driver, as far as memory goes that another process may map: the calls for which torch has no name.

Every call happens in the primary context of a card, the one torch computes in. Names and meanings: CUDA Driver API,
"Memory Management"; `_v2` is what cuda.h calls by the plain name.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

LIBRARY = "libcuda.so.1"
HANDLE_BYTES = 64

_LAZY_ENABLE_PEER_ACCESS = 1
_CAPTURE_MODE_RELAXED = 2
_SMALLEST_BYTES = 2 * 1024 * 1024
_MEANING = {
    2: "the card has no room",
    100: "there is no card",
    205: "the memory cannot be mapped",
    217: "no peer access between the two cards",
    400: "the handle means nothing here; in containers, both need the host's IPC and process namespaces",
    711: "the card has as many peers as it may",
    801: "not to be had on this system or card; parts of a card (MIG) share nothing",
}
"""What results mean where these calls return them."""


class DriverError(Exception):
    """The driver is not there, or refused a call; the message says why."""


class _Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("data", ctypes.c_ubyte * HANDLE_BYTES),)


_INT, _UINT, _SIZE, _POINTER = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_void_p
_ADDRESS = ctypes.c_uint64
"""CUdeviceptr."""
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (_UINT,),
    "cuGetErrorName": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceCanAccessPeer": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_POINTER), _INT),
    "cuCtxPushCurrent_v2": (_POINTER,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_POINTER),),
    "cuThreadExchangeStreamCaptureMode": (ctypes.POINTER(_INT),),
    "cuMemAlloc_v2": (ctypes.POINTER(_ADDRESS), _SIZE),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemGetAddressRange_v2": (ctypes.POINTER(_ADDRESS), ctypes.POINTER(_SIZE), _ADDRESS),
    "cuIpcGetMemHandle": (ctypes.POINTER(_Handle), _ADDRESS),
    "cuIpcOpenMemHandle_v2": (ctypes.POINTER(_ADDRESS), _Handle, _UINT),
    "cuIpcCloseMemHandle": (_ADDRESS,),
}


@cache
def load_driver() -> Driver:
    """Return this process's driver.

    Raises:
        DriverError: there is none, or no card.
    """
    return Driver(LIBRARY)


class Driver:
    """The driver, loaded. Cards are counted as torch counts them.

    Every method but those that ask raises DriverError where the driver refuses.

    Args:
        library: its file.
    """

    def __init__(self, library: str) -> None:
        try:
            loaded = ctypes.CDLL(library)
        except OSError as error:
            raise DriverError(f"there is no NVIDIA driver ({error})") from error
        try:
            self._functions = {name: getattr(loaded, name) for name in _SIGNATURES}
        except AttributeError as error:
            raise DriverError(f"the NVIDIA driver is too old: {error}") from error
        for name, arguments in _SIGNATURES.items():
            self._functions[name].argtypes = arguments
            self._functions[name].restype = _INT
        self._lock = threading.Lock()
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._call("cuInit", 0)

    @property
    def num_cards(self) -> int:
        """Return how many cards this process sees."""
        count = _INT()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def can_reach(self, card: int, other: int) -> bool:
        """Tell whether a card can read another's memory."""
        answer = _INT()
        self._call("cuDeviceCanAccessPeer", ctypes.byref(answer), self._device(card), self._device(other))
        return bool(answer.value)

    def allocate(self, card: int, num_bytes: int) -> int:
        """Return the address of new memory on a card, not cleared."""
        address = _ADDRESS()
        with self._on(card):
            self._call("cuMemAlloc_v2", ctypes.byref(address), num_bytes)
        return address.value

    def free(self, card: int, address: int) -> None:
        """Give back what `allocate` returned, after what the card still does with it."""
        with self._on(card):
            self._call("cuMemFree_v2", address)

    def num_bytes_from(self, card: int, address: int) -> int:
        """Return the bytes of the allocation that begins at an address; 0 where none does."""
        base, size = _ADDRESS(), _SIZE()
        with self._on(card):
            self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), address)
        return size.value if base.value == address else 0

    def export(self, card: int, address: int) -> bytes:
        """Return the handle by which another process maps an allocation."""
        handle = _Handle()
        with self._on(card):
            self._call("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return bytes(handle.data)

    def check_export(self, card: int) -> None:
        """Return if a card's memory can be exported, as far as one process can tell."""
        address = self.allocate(card, _SMALLEST_BYTES)
        try:
            self.export(card, address)
        finally:
            self.free(card, address)

    def map(self, card: int, handle: bytes) -> int:
        """Return the address at which a card has another process's memory from now on.

        That may be memory of another card, and of one that this process does not see (CUDA Runtime API,
        cudaIpcOpenMemHandle), if the two reach each other.
        """
        if len(handle) != HANDLE_BYTES:
            raise DriverError(f"expected a handle of {HANDLE_BYTES} bytes, found {len(handle)}")
        address = _ADDRESS()
        with self._on(card):
            exported = _Handle.from_buffer_copy(handle)
            self._call("cuIpcOpenMemHandle_v2", ctypes.byref(address), exported, _LAZY_ENABLE_PEER_ACCESS)
        return address.value

    def unmap(self, card: int, address: int) -> None:
        """Undo `map`."""
        with self._on(card):
            self._call("cuIpcCloseMemHandle", address)

    @contextmanager
    def _on(self, card: int) -> Iterator[None]:
        """Make a card's primary context the calling thread's for a while.

        In which the thread is not in the way of another that captures a CUDA graph, and would spoil it by allocating.
        """
        self._call("cuCtxPushCurrent_v2", self._context(card))
        mode = _INT(_CAPTURE_MODE_RELAXED)
        try:
            self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
            try:
                yield
            finally:
                self._call("cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(_POINTER()))

    def _context(self, card: int) -> ctypes.c_void_p:
        """Return a card's primary context; it stays for as long as the process lives, as torch's does."""
        with self._lock:
            if card not in self._contexts:
                context = _POINTER()
                self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(card))
                self._contexts[card] = context
            return self._contexts[card]

    def _device(self, card: int) -> int:
        device = _INT()
        self._call("cuDeviceGet", ctypes.byref(device), card)
        return device.value

    def _call(self, name: str, *arguments: object) -> None:
        result = self._functions[name](*arguments)
        if result:
            text = ctypes.c_char_p()
            self._functions["cuGetErrorName"](result, ctypes.byref(text))
            said = (text.value or str(result).encode()).decode()
            raise DriverError(f"{name} returned {said}" + (f": {_MEANING[result]}" if result in _MEANING else ""))
