{{/* What all pods of Ray have in common: one pod specification for head and workers. */}}

{{- define "herd.environment" -}}
# What runs when a pod is told to end has this long to finish or to move.
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ include "herd.drainSeconds" . | quote }}}
# The machine, which is not the pod's name: several pods may share it.
- {name: HERD_MACHINE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_SERVE_USE_GRPC_BY_DEFAULT, value: "1"}
- {name: RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH, value: "2147483647"}
- {name: RAY_ENABLE_UV_RUN_RUNTIME_ENV, value: "0"}
- {name: OMP_WAIT_POLICY, value: PASSIVE}
- {name: THP_MEM_ALLOC_ENABLE, value: "1"}
- {name: HOME, value: /tmp}
{{- end -}}

{{/* What KubeRay sets from other fields of a RayService, and would have twice. */}}
{{- define "herd.operatorsEnvironment" -}}
{{- range list "RAY_ADDRESS" "RAY_AUTH_MODE" "RAY_AUTH_TOKEN" "RAY_CLUSTER_NAME" "RAY_REDIS_ADDRESS" "REDIS_PASSWORD" "REDIS_USERNAME" }}
- {name: {{ . }}}
{{- end }}
{{- end -}}

{{- define "herd.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* Takes root, component, account, place (nodeSelector, tolerations, gpus), container and scheduling (YAML text). */}}
{{- define "herd.podTemplate" -}}
metadata:
  labels:
    {{- with .root.Values.pods.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- include "herd.selector" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  {{- with .root.Values.pods.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ .account }}
  {{- if ne .component "head" }}
  automountServiceAccountToken: false
  {{- end }}
  {{- with .root.Values.pods.priorityClass }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if and .place.gpus .root.Values.pods.gpuRuntimeClass }}
  runtimeClassName: {{ .root.Values.pods.gpuRuntimeClass }}
  {{- end }}
  terminationGracePeriodSeconds: {{ include "herd.graceSeconds" .root }}
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  {{- with .place.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .place.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .scheduling }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: ray
      image: {{ include "herd.image" .root | quote }}
      imagePullPolicy: {{ .root.Values.image.pullPolicy }}
      env:
        {{- include "herd.environment" .root | nindent 8 }}
        {{- if and (eq .component "experts") (dig "experts" "warm_spares" 0 .root.Values.settings) }}
        # What processes that are kept ready import.
        - {name: RAY_preload_python_modules, value: cluster.preload}
        {{- end }}
        {{- with .root.Values.pods.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      securityContext:
        {{- include "herd.containerSecurity" . | nindent 8 }}
      {{- .container | nindent 6 }}
      volumeMounts:
        - {name: settings, mountPath: /etc/herd, readOnly: true}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- range $index, $secret := .root.Values.secrets }}
        - {name: secret-{{ $index }}, mountPath: {{ $secret.mountPath }}, readOnly: true}
        {{- end }}
        {{- if ne .root.Values.weights.source "none" }}
        - {name: weights, mountPath: {{ .root.Values.weights.mountPath }}, readOnly: true}
        {{- end }}
  volumes:
    - name: settings
      configMap: {name: {{ include "herd.name" .root }}}
    - name: tmp
      emptyDir: {}
    - name: shm
      emptyDir: {medium: Memory}
    {{- range $index, $secret := .root.Values.secrets }}
    - name: secret-{{ $index }}
      secret: {secretName: {{ $secret.name }}, defaultMode: 0440}
    {{- end }}
    {{- if eq .root.Values.weights.source "pvc" }}
    - name: weights
      persistentVolumeClaim: {claimName: {{ .root.Values.weights.claim }}, readOnly: true}
    {{- else if eq .root.Values.weights.source "csi" }}
    - name: weights
      csi:
        {{- merge (dict "readOnly" true) .root.Values.weights.csi | toYaml | nindent 8 }}
    {{- else if eq .root.Values.weights.source "image" }}
    - name: weights
      image: {reference: {{ .root.Values.weights.image | quote }}, pullPolicy: IfNotPresent}
    {{- end }}
{{- end -}}

{{/* Resources of a container. Takes cpu, memory, gpus, disk (bytes, or none). */}}
{{- define "herd.resources" -}}
resources:
  requests:
    {{- include "herd.amounts" . | nindent 4 }}
    {{- with .disk }}
    ephemeral-storage: {{ add . 2147483648 | quote }} # and 2 GiB for logs
    {{- end }}
  limits:
    {{- include "herd.amounts" . | nindent 4 }}
{{- end -}}

{{- define "herd.amounts" -}}
cpu: {{ .cpu | default (ternary "8" "2" (gt (int .gpus) 0)) | quote }}
memory: {{ .memory | default (ternary "32Gi" "4Gi" (gt (int .gpus) 0)) | quote }}
{{- if .gpus }}
nvidia.com/gpu: {{ .gpus | int }}
{{- end }}
{{- end -}}

{{/* Asks Ray's agent in the pod: KubeRay's own probe of workers asks a proxy of Ray Serve's, and there is none. */}}
{{- define "herd.rayHealthy" -}}
httpGet: {path: /api/local_raylet_healthz, port: 52365}
timeoutSeconds: 5
periodSeconds: 10
{{- end -}}
