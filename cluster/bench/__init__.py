"""`herd bench`: puts load on a server of any make and measures what its clients see.

A run in five steps: settings -> load (which request when) -> runner (sends them to a target) -> measurements, one per
request -> summary, which the table, the JSON file and the picture are written from. Nothing here imports torch or Ray.
"""
