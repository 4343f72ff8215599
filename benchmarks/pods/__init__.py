"""Pods of the chart on this machine, and around them what Kubernetes does: as much of it as the end of a pod touches.

rendered.py   what the chart says of pods, and what KubeRay makes of that: environment, `ray start`, grace, probe
pod.py        one pod: a network, processes, mounts and a name of its own, ended as a kubelet does
cluster.py    all of them: KubeRay, which replaces a pod when it is gone, and the application
service.py    a Service: leads new connections to front doors that are ready

It takes Linux, `ip`, `unshare`, helm, and the right to make namespaces: root's.
"""
