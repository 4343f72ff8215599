"""Imported first by every process that Ray starts, where Ray is told so: `RAY_preload_python_modules`."""

from __future__ import annotations

from cluster.warm_process import warm_up

warm_up()
