"""The contract between Herd's processes: message definitions, generated stubs, the tensor codec, errors."""
