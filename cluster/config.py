"""Every setting there is, as plain data. `config_source.py` reads them, `plan.py` derives what they leave open."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cluster.autoscaling import Bounds
from cluster.limits import FrontDoorLimits
from cluster.scaling_settings import ScalingSettings, bounds_around
from cluster.setting_checks import check_floor, check_seconds
from protos.errors import BadConfig
from protos.tls import Identity, TlsFiles

DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
CopyName = Literal["auto", "always", "never"]
PriorityName = Literal["idle", "normal"]
QuantizeName = Literal["int8", "int4", "fp8"]
LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]
KvDtypeName = Literal["auto", "float32", "bfloat16", "float16", "int8", "fp8"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """What is served."""

    path: str = "demo"
    """A folder in Hugging Face's or Meta's layout, or the name of a preset."""
    name: str | None = None
    """What requests call the model; None: the preset's or the folder's name."""
    context_length: int | None = None
    """Most tokens of prompt and output together; at least 2. None: what the model and `router.kv_bytes` allow."""
    quantize: QuantizeName | None = None
    """Round weights to 8 or 4 bits when they are loaded: less memory, faster on a CPU; fp8 needs a Hopper GPU. What the
    model's folder has in that form stays as it is. None: what it has in 4 bits, and on a GPU in fp8, stays so, all else
    is held in `router.dtype`."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        if not self.path:
            raise BadConfig("model.path: expected a folder or a preset, found nothing; name one")
        if self.name is not None and not self.name.strip():
            raise BadConfig("model.name: expected a name, found a blank one; leave it out to take the folder's")
        check_floor("model.context_length", self.context_length, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class HttpSettings:
    """The OpenAI API."""

    host: str = "0.0.0.0"
    """Address to listen on; 127.0.0.1 keeps it to this machine."""
    port: int = 8000
    """TCP port, 1 to 65535."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        _check_port("http.port", self.port)


@dataclass(frozen=True, kw_only=True, slots=True)
class GrpcSettings:
    """The gRPC API. It listens on every interface."""

    port: int = 9000
    """TCP port, 1 to 65535."""
    max_message_bytes: int = 32 * 1024 * 1024
    """Largest request message, in bytes; at least 65536. A longer one ends as RESOURCE_EXHAUSTED."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        _check_port("grpc.port", self.port)
        check_floor("grpc.max_message_bytes", self.max_message_bytes, 65_536)


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSettings:
    """The processes that hold attention and the KV cache."""

    replicas: int = 1
    """Processes, each with its own copy of the router's weights; at least 1."""
    device: DeviceName = "auto"
    """What routers compute on: cpu, cuda (a GPU each), or, auto, GPUs where this machine has one that the kernels are
    for (Hopper or later) for each router and expert replica there may be; else the CPU."""
    dtype: DtypeName = "auto"
    """What routers and experts compute in; auto: float32 on a CPU, bfloat16 where anything computes on a GPU."""
    threads: int | None = None
    """CPU threads of one router; at least 1. None: this machine's cores shared evenly by all routers."""
    slots: int = 16
    """Most sequences one router generates at once; at least 1."""
    max_waiting: int = 256
    """Most sequences one router accepts beyond that; at least 0. More are refused as Overloaded."""
    step_tokens: int = 2048
    """Most tokens computed in one step; at least `slots`."""
    prefill_stretch: float = 1.75
    """How many times longer a step may take because a prompt shares it with sequences that generate; at least 1. Where
    several prompts wait, the extra time is longer: a burst of them is read in large pieces. Smaller: a long prompt
    delays the others' tokens less, and takes longer itself."""
    kv_bytes: int | None = None
    """Bytes of KV cache of one router; at least 1. None: what `slots` full contexts need, within a quarter of the
    memory that is free when Herd starts; on a GPU, within what weights, workspace and a margin leave of the card."""
    kv_dtype: KvDtypeName = "auto"
    """What keys and values are stored in; auto: the dtype of the model. int8 and fp8 take a quarter of float32's bytes
    and cost accuracy."""
    page_tokens: int = 16
    """Most tokens per page of the KV cache, at least 1; pages divide the model's attention chunk."""
    prefix_cache: bool = True
    """Keep computed pages after a request, for prompts that begin alike."""
    host_kv_bytes: int | None = None
    """Bytes of memory of one router for pages that the KV cache has no room for; 0: none. They come back where that is
    quicker than computing them again. None: a quarter of `kv_bytes`, taken only when needed."""
    disk_kv_bytes: int = 0
    """Bytes on disk of one router for pages that this memory has no room for; 0: none."""
    kv_folder: str | None = None
    """Folder on each router's machine that keeps these pages over restarts, readable by its user alone. None: a
    nameless file in the system's temporary folder, gone with the process."""
    answer_timeout_s: float = 20.0
    """Seconds one expert replica has to answer before another one is asked; positive."""
    patience_s: float = 600.0
    """Seconds a layer waits for a holder of an expert, and a dispatch for its answers, restarts included; positive."""
    stuck_after_s: float = 60.0
    """Seconds without a sign of life from a router's step after which the router is replaced and its sequences go on at
    another one; positive. Every layer is one, and every look up from a wait for experts: longer than any one layer of a
    step takes."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        for name in ("replicas", "threads", "slots", "kv_bytes"):
            check_floor(f"router.{name}", getattr(self, name), 1)
        check_floor("router.max_waiting", self.max_waiting, 0)
        check_floor("router.host_kv_bytes", self.host_kv_bytes, 0)
        check_floor("router.disk_kv_bytes", self.disk_kv_bytes, 0)
        check_floor("router.page_tokens", self.page_tokens, 1)
        check_floor("router.prefill_stretch", self.prefill_stretch, 1)
        if self.step_tokens < self.slots:
            raise BadConfig(
                f"router.step_tokens: expected at least router.slots, {self.slots}, found {self.step_tokens}; raise it"
            )
        for name in ("answer_timeout_s", "patience_s", "stuck_after_s"):
            check_seconds(f"router.{name}", getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsSettings:
    """The processes that hold the routed experts. Without effect for a dense model."""

    groups: int | None = None
    """Groups the experts of every layer are split into, one deployment each; 1 to the model's experts. None: 2."""
    in_router: bool = False
    """Hold all experts in each router's own process, on its device, instead of in processes of their own: one process
    on one GPU serves a whole model. Nothing stands in for an expert then, or scales apart from its router."""
    device: DeviceName = "auto"
    """What expert replicas compute on: cpu, cuda (a GPU each), or, auto, what routers do, if GPUs are left for them."""
    replicas_per_group: int = 1
    """Processes per group, each with a copy of the group's weights; at least 1."""
    spare_experts: int | None = None
    """Experts of other groups that a replica may hold copies of while they are in demand; at least 0. None: 1 where the
    machine has the memory, else 0."""
    threads: int | None = None
    """CPU threads of one replica; at least 1. None: this machine's cores shared evenly by all expert replicas."""
    copy_from_peers: CopyName = "auto"
    """Copy weights from a live replica that holds them instead of reading files: always, never, or, auto, where the
    model's folder is on a network's file system or one of user space (FUSE). What no replica hands out is read."""
    warm_spares: int | None = None
    """Idle processes kept on every node with expert replicas, everything imported, for replicas that start next; at
    least 0. Each takes about 300 MB. 0: a replica that starts imports everything first. None: 1, or 2 where a group may
    grow by two replicas or more."""
    host: str | None = "127.0.0.1"
    """Address that replicas listen on and tell the routers. None: their node's, for a Ray cluster of many machines."""
    lease_s: float = 6.0
    """Seconds after its last heartbeat at which a replica is taken out of the placement; at least 2."""
    drain_s: float = 5.0
    """Seconds a replica that is stopped has to finish its dispatches; positive."""
    tls_ca: str | None = None
    """File with the authorities that routers, expert replicas and context shards must have their certificates from, in
    PEM. Each shows one and asks for one; it is for the DNS name `herd`. Files are read again when they change. None:
    no encryption between them."""
    tls_cert: str | None = None
    """File with the certificate of the processes of a machine, in PEM; goes with `tls_ca` and `tls_key`."""
    tls_key: str | None = None
    """File with the certificate's key, in PEM without a password."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        for name in ("groups", "replicas_per_group", "threads"):
            check_floor(f"experts.{name}", getattr(self, name), 1)
        for name in ("spare_experts", "warm_spares"):
            check_floor(f"experts.{name}", getattr(self, name), 0)
        check_floor("experts.lease_s", self.lease_s, 2)
        check_seconds("experts.drain_s", self.drain_s)
        if len({each is None for each in (self.tls_ca, self.tls_cert, self.tls_key)}) > 1:
            raise BadConfig(
                "experts.tls_ca, experts.tls_cert, experts.tls_key: expected all or none, found some; name the others"
            )
        if self.in_router:
            self._check_in_router()

    def identity(self) -> Identity | None:
        """Read what this process shows to others of its Herd, and whom it believes; None: no encryption.

        Raises:
            BadConfig: the files are unusable.
        """
        files = tls_files(self.tls_cert, self.tls_key, self.tls_ca)
        return None if files is None else Identity(files)

    def _check_in_router(self) -> None:
        """Refuse what only processes of their own could have."""
        for name, most in (("groups", 1), ("replicas_per_group", 1), ("spare_experts", 0)):
            asked = getattr(self, name)
            if asked is not None and asked > most:
                raise BadConfig(
                    f"experts.{name}: expected at most {most} with experts.in_router, which makes no expert replicas, "
                    f"found {asked}; leave it out, or set experts.in_router=false"
                )
        if self.copy_from_peers == "always":
            raise BadConfig(
                "experts.copy_from_peers: expected auto or never with experts.in_router, which makes no expert "
                "replicas, found always; leave it out, or set experts.in_router=false"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextSettings:
    """The processes that hold keys and values of global layers, where a router's own memory is too small."""

    shards: int = 0
    """Context shards there are at first, and at least; 0: routers hold all keys and values themselves."""
    max_shards: int | None = None
    """Most of them; at least `shards`. More are started while sequences want more tokens than there is room for; none
    goes before no sequence has any. None: `shards`."""
    kv_bytes: int | None = None
    """Bytes of keys and values of one shard; at least 1. None: a quarter of the memory that is free when Herd starts,
    shared by as many as there may be."""
    segment_tokens: int | None = None
    """Tokens of a sequence that lie together on one shard; whole attention chunks. None: one chunk. Smaller ones spread
    sooner, and less is computed again when a shard dies."""
    threads: int | None = None
    """CPU threads of one shard; at least 1. None: this machine's cores shared evenly by all shards."""
    host: str | None = "127.0.0.1"
    """Address that shards listen on and tell the routers. None: their node's, for a Ray cluster of many machines."""
    lease_s: float = 30.0
    """Seconds that what a router wrote outlives its connection; positive."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        check_floor("context.shards", self.shards, 0)
        for name in ("kv_bytes", "segment_tokens", "threads"):
            check_floor(f"context.{name}", getattr(self, name), 1)
        check_seconds("context.lease_s", self.lease_s)
        if self.max_shards is not None and self.max_shards < max(self.shards, 1):
            raise BadConfig(
                f"context.max_shards: expected at least context.shards, {self.shards}, and 1, found {self.max_shards}; "
                "raise it"
            )
        if self.max_shards is not None and not self.shards:
            raise BadConfig(
                f"context.shards: expected at least 1 where there may be {self.max_shards}, found 0; a router's keys "
                "and values are on shards or not from its start"
            )

    @property
    def bounds(self) -> Bounds:
        """Return how many shards there may be."""
        return Bounds(min_replicas=self.shards, max_replicas=self.most_shards)

    @property
    def most_shards(self) -> int:
        """Return how many shards there are at most; 0: none."""
        return self.shards if self.max_shards is None else self.max_shards


@dataclass(frozen=True, kw_only=True, slots=True)
class LongSettings:
    """Routers of their own for long requests, so that short ones never wait behind a long prompt."""

    from_tokens: int | None = None
    """Tokens of prompt and output together from which a request is long; at least 2. None: all requests share the
    routers of `router.*`."""
    context_length: int | None = None
    """Most tokens of prompt and output together of a long request; at least `from_tokens`. None:
    `model.context_length`, or what the model and `long.kv_bytes` allow."""
    replicas: int = 1
    """Routers for long requests there are at first; at least 1."""
    min_replicas: int | None = None
    """Fewest of them; at least 0: then the last one goes after `scaling.zero_after_s` without a long request. None:
    `replicas`."""
    max_replicas: int | None = None
    """Most of them; at least the fewest. None: `replicas`."""
    slots: int = 2
    """Most sequences one of them generates at once; at least 1. Further ones wait in line in the front door."""
    kv_bytes: int | None = None
    """Bytes of KV cache of one of them; at least 1. None: what `slots` full contexts need, within the same as for
    `router.kv_bytes`."""
    step_tokens: int = 512
    """Most tokens computed in one step; at least `slots`. Experts are shared: a short request's tokens may wait for one
    piece of this size in a layer. Larger: long prompts are computed faster."""
    threads: int | None = None
    """CPU threads of one of them; at least 1. None: this machine's cores shared evenly by all of them."""
    priority: PriorityName = "idle"
    """Which cores they compute on: idle, those that nobody else wants at the moment (Linux); normal, their share."""
    max_sequences: int = 64
    """Most long sequences in flight at one front door, those in line included; at least 1. More are refused as
    Overloaded."""
    max_queued_prompt_tokens: int = 16_000_000
    """Most prompt tokens of long requests admitted there and not yet computed; at least 1. A longer single prompt is
    admitted alone."""
    request_timeout_s: float = 3600.0
    """Seconds from admission after which a long request ends with DeadlineExceeded; positive."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        for name in ("from_tokens", "context_length"):
            check_floor(f"long.{name}", getattr(self, name), 2)
        for name in (
            "replicas",
            "max_replicas",
            "slots",
            "kv_bytes",
            "threads",
            "max_sequences",
            "max_queued_prompt_tokens",
        ):
            check_floor(f"long.{name}", getattr(self, name), 1)
        check_floor("long.min_replicas", self.min_replicas, 0)
        check_seconds("long.request_timeout_s", self.request_timeout_s)
        if self.step_tokens < self.slots:
            raise BadConfig(
                f"long.step_tokens: expected at least long.slots, {self.slots}, found {self.step_tokens}; raise it"
            )
        self.bounds()

    def bounds(self) -> Bounds:
        """Return how many of them there may be."""
        return bounds_around("long.", self.replicas, self.min_replicas, self.max_replicas)

    def limits(self, standard: FrontDoorLimits) -> FrontDoorLimits:
        """Return what a front door takes on of long requests, `standard` being what it takes on of others."""
        return replace(
            standard,
            max_sequences=self.max_sequences,
            max_queued_prompt_tokens=self.max_queued_prompt_tokens,
            request_timeout_s=self.request_timeout_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LogSettings:
    """What every process writes to its standard error stream."""

    format: LogFormat = "text"
    """text, for people; json, one object in each line, for collectors."""
    level: LogLevel = "info"
    """Least important lines that are written: debug (two for each sequence at a router), info (one for each request),
    warning or error."""

    def check(self) -> None:
        """Refuse values that cannot work: there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSettings:
    """Spans of requests, for OpenTelemetry."""

    endpoint: str | None = None
    """Where to send them: a URL that takes OTLP by HTTP, such as http://collector:4318/v1/traces. Needs
    `llama-herd[trace]`. None: no traces."""
    sample: float = 0.01
    """Share of requests that are traced; 0 to 1. Where a client sends a `traceparent`, that decides."""

    def check(self) -> None:
        """Refuse values that cannot work."""
        if self.endpoint is not None and not self.endpoint.startswith(("http://", "https://")):
            raise BadConfig(f"trace.endpoint: expected a URL that begins with http, found {self.endpoint!r}; name one")
        if not 0 <= self.sample <= 1:
            raise BadConfig(f"trace.sample: expected 0 to 1, found {self.sample:g}; choose a share of all requests")


@dataclass(frozen=True, kw_only=True, slots=True)
class KubernetesSettings:
    """What Herd makes of the nodes it runs on."""

    watch: bool = True
    """Follow Herd's own pods and the cluster's nodes, and begin to move replicas as soon as their end is foretold: by a
    taint of the node, an eviction or a deletion of the pod. Without effect outside a RayCluster's pods."""
    near_labels: str = "nvidia.com/gpu.clique,topology.kubernetes.io/zone"
    """Labels of nodes whose equal values mean near, narrowest first, with commas between: routers prefer expert
    replicas on their own machine, then those nearby. Of Ray's nodes (`ray start --labels`), and of Kubernetes' nodes
    where these are followed. Empty: only the machine counts."""

    @property
    def domains(self) -> tuple[str, ...]:
        """Return those labels."""
        return tuple(each for label in self.near_labels.split(",") if (each := label.strip()))


@dataclass(frozen=True, kw_only=True, slots=True)
class AuthSettings:
    """Who may call the front door."""

    keys_file: str | None = None
    """File of API keys, one for each front door's machine, read again when it changes; `herd keys new` adds to it.
    None: nobody needs a key."""

    @property
    def file(self) -> Path | None:
        """Return the file; None: nobody needs a key."""
        return None if self.keys_file is None else _file(self.keys_file)

    def check(self) -> None:
        """Refuse values that cannot work."""
        if self.keys_file == "":
            raise BadConfig("auth.keys_file: expected a file, found nothing; name one, or leave it out to ask for none")


@dataclass(frozen=True, kw_only=True, slots=True)
class TlsSettings:
    """Encryption between clients and the front door, for both APIs."""

    cert: str | None = None
    """File with the front door's certificate and those up to its authority, in PEM. Files are read again when they
    change. None: no encryption."""
    key: str | None = None
    """File with the certificate's key, in PEM without a password. None: no encryption."""
    client_ca: str | None = None
    """File with the authorities that clients' certificates must be from, in PEM; probes need one too then. None:
    clients need none."""

    @property
    def files(self) -> TlsFiles | None:
        """Return the files; None: no encryption."""
        return tls_files(self.cert, self.key, self.client_ca)

    def check(self) -> None:
        """Refuse values that cannot work."""
        if (self.cert is None) != (self.key is None) or (self.client_ca is not None and self.cert is None):
            raise BadConfig(
                "tls.cert, tls.key: expected both or neither, and both with tls.client_ca, found one without another; "
                "name all of them"
            )


def tls_files(cert: str | None, key: str | None, ca: str | None) -> TlsFiles | None:
    """Return files named by settings; None: none are."""
    if cert is None or key is None:
        return None
    return TlsFiles(cert=_file(cert), key=_file(key), ca=None if ca is None else _file(ca))


def _file(name: str) -> Path:
    return Path(name).expanduser().absolute()


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """All settings of one Herd. A field's default is right for a laptop."""

    model: ModelSettings = field(default_factory=ModelSettings)
    """What is served."""
    http: HttpSettings = field(default_factory=HttpSettings)
    """The OpenAI API."""
    grpc: GrpcSettings = field(default_factory=GrpcSettings)
    """The gRPC API."""
    router: RouterSettings = field(default_factory=RouterSettings)
    """Attention, KV cache and sampling."""
    experts: ExpertsSettings = field(default_factory=ExpertsSettings)
    """Routed experts."""
    context: ContextSettings = field(default_factory=ContextSettings)
    """Context shards."""
    long: LongSettings = field(default_factory=LongSettings)
    """Routers for long requests."""
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    """How many replicas there may be."""
    limits: FrontDoorLimits = field(default_factory=FrontDoorLimits)
    """What the front door accepts at most."""
    log: LogSettings = field(default_factory=LogSettings)
    """Lines of all processes."""
    trace: TraceSettings = field(default_factory=TraceSettings)
    """Spans of requests."""
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)
    """What is done in Kubernetes only."""
    auth: AuthSettings = field(default_factory=AuthSettings)
    """Who may call."""
    tls: TlsSettings = field(default_factory=TlsSettings)
    """Encryption between clients and the front door."""

    def check(self) -> None:
        """Refuse values that cannot work, without a look at the machine.

        Raises:
            BadConfig: a value is out of range or contradicts another.
        """
        sections = (
            self.model,
            self.http,
            self.grpc,
            self.router,
            self.experts,
            self.context,
            self.long,
            self.scaling,
            self.log,
            self.trace,
            self.auth,
            self.tls,
        )
        for section in sections:
            section.check()
        self.scaling.front_doors()
        self.scaling.routers(self.router.replicas)
        experts = self.scaling.experts(self.experts.replicas_per_group)
        if self.experts.in_router:
            self._check_in_router(experts)
        try:
            self.limits.check()
        except BadConfig as error:
            raise BadConfig(f"limits.{error.message}") from None
        if self.http.port == self.grpc.port:
            raise BadConfig(f"expected two ports, found {self.http.port} for both HTTP and gRPC; change one")

    def _check_in_router(self, replicas: Bounds) -> None:
        """Refuse what contradicts experts in the routers' processes."""
        if (replicas.min_replicas, replicas.max_replicas) != (1, 1):
            raise BadConfig(
                "scaling.experts_min_replicas, scaling.experts_max_replicas: expected none with experts.in_router, "
                f"where experts scale with their routers, found {replicas.min_replicas} and {replicas.max_replicas}; "
                "leave them out, or set experts.in_router=false"
            )
        if self.experts.device not in ("auto", self.router.device):
            raise BadConfig(
                f"experts.device: expected router.device, {self.router.device}, with experts.in_router, found "
                f"{self.experts.device}; set router.device and leave it out"
            )


def _check_port(name: str, port: int) -> None:
    if not 1 <= port <= 65_535:
        raise BadConfig(f"{name}: expected a port from 1 to 65535, found {port}; choose one")
