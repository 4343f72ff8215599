"""The OpenAI HTTP API of the front door, with the status page and the metrics beside it."""
