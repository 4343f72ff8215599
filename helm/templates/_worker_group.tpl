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
{{ include "herd.resources" $worker }}
livenessProbe:
  {{- include "herd.rayHealthy" . | nindent 2 }}
  failureThreshold: 12
{{- if eq .role "frontDoors" }}
readinessProbe:
  {{- if dig "tls" "client_ca" "" .root.Values.settings }}
  tcpSocket: {port: http} # whoever asks for more needs a certificate
  {{- else }}
  httpGet: {path: /health, port: http, scheme: {{ ternary "HTTPS" "HTTP" (not (empty (dig "tls" "cert" "" .root.Values.settings))) }}}
  {{- end }}
  timeoutSeconds: 5
  periodSeconds: 5
  failureThreshold: 2
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
{{- if $worker.spreadCopiesOverNodes }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: DoNotSchedule
    nodeTaintsPolicy: Honor # a node that is down or cordoned must not be waited for
    matchLabelKeys: [ray.io/cluster] # those of a cluster that this one replaces do not count
    labelSelector:
      matchLabels:
        {{- include "herd.selector" .root | nindent 8 }}
        ray.io/group: {{ .group }}
{{- end }}
{{- end -}}
