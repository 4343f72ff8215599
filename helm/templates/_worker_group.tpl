{{/*
One group of workers. Takes root, role (key of values), component (label of its pods), group (name of KubeRay's), parts
(groups that share the role's pods), resources (of Ray's).
*/}}
{{- define "herd.workerGroup" -}}
{{- $worker := index .root.Values.workers .role -}}
{{- $container := include "herd.workerContainer" . -}}
{{- $scheduling := include "herd.workerScheduling" . -}}
{{- $template := dict "root" .root "component" .component "account" (include "herd.name" .root) "place" $worker "container" $container "scheduling" $scheduling -}}
groupName: {{ .group }}
{{ include "herd.replicas" . }}
rayStartParams:
  object-store-memory: "104857600"
resources:
  {{- toYaml .resources | nindent 2 }}
template:
  {{- include "herd.podTemplate" $template | nindent 2 }}
{{- end -}}

{{- define "herd.workerContainer" -}}
{{- $worker := index .root.Values.workers .role -}}
{{- $disk := ternary (dig "router" "disk_kv_bytes" 0 .root.Values.settings | int64) 0 (eq .role "routers") -}}
{{ include "herd.resources" (merge (dict "disk" $disk) $worker) }}
livenessProbe:
  {{- include "herd.rayHealthy" . | nindent 2 }}
  failureThreshold: 12
{{- if eq .role "frontDoors" }}
readinessProbe:
  {{- if include "herd.asksForCertificates" .root }}
  tcpSocket: {port: http} # whoever asks for more needs a certificate
  {{- else }}
  httpGet: {path: /health, port: http, scheme: {{ ternary "HTTPS" "HTTP" (eq (include "herd.hasTls" .root) "true") }}}
  {{- end }}
  timeoutSeconds: 5
  periodSeconds: {{ include "herd.readinessPeriod" . }}
  failureThreshold: {{ include "herd.readinessFailures" . }}
ports:
  - {name: http, containerPort: {{ include "herd.httpPort" .root }}}
  - {name: grpc, containerPort: {{ include "herd.grpcPort" .root }}}
{{- else }}
readinessProbe:
  {{- include "herd.rayHealthy" . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "herd.workerScheduling" -}}
{{- $worker := index .root.Values.workers .role -}}
{{- if and $worker.gpuKind (not $worker.gpus) -}}
{{- fail (printf "workers.%s.gpuKind: expected none without gpus, found %s; set gpus=1, or leave it out" .role $worker.gpuKind) -}}
{{- end -}}
{{- if $worker.gpuKind -}}
{{- $products := index .root.Values.gpuProducts $worker.gpuKind -}}
{{- if not $products -}}
{{- fail (printf "workers.%s.gpuKind: expected one of %s, found %s; add its products to gpuProducts" .role (keys .root.Values.gpuProducts | sortAlpha | join ", ") $worker.gpuKind) -}}
{{- end }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - {key: nvidia.com/gpu.product, operator: In, values: {{ toJson $products }}}
{{- end }}
{{- if and $worker.spreadCopiesOverNodes (not $worker.gpuKind) (not $worker.nodeSelector) -}}
{{- fail (printf "workers.%s.spreadCopiesOverNodes: expected gpuKind or a nodeSelector beside it, found neither; choose nodes, as all others count as nodes without such a pod" .role) -}}
{{- end -}}
{{- if or $worker.spreadCopiesOverNodes (eq .role "frontDoors") }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: {{ ternary "DoNotSchedule" "ScheduleAnyway" (eq .role "experts") }}
    nodeTaintsPolicy: Honor # a node that is drained does not count as one without such a pod
    matchLabelKeys: [ray.io/cluster] # nor do pods of the cluster that this one takes over from
    labelSelector:
      matchLabels:
        {{- include "herd.selector" .root | nindent 8 }}
        ray.io/group: {{ .group }}
{{- end }}
{{- end -}}
