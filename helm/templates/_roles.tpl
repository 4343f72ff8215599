{{/*
Groups of workers in their order, which must stay: KubeRay takes a group more at the end in place. Each has its key of
values, KubeRay's name of it, and the resource of Ray's that replicas ask for.
*/}}
{{- define "herd.roles" -}}
- {role: frontDoors, group: front-door, resource: herd_front_door}
- {role: routers, group: router, resource: herd_router}
- {role: experts, group: experts, resource: herd_experts}
- {role: contextShards, group: context-shard, resource: herd_context_shard}
{{- end -}}

{{/*
The same as KubeRay has them. Where copies spread over nodes, each expert group has a group of workers of its own, whose
pods Kubernetes keeps on different nodes: pods of one group of workers are all alike, and so nobody could tell which of
them will hold copies of one expert.
*/}}
{{- define "herd.workerGroups" -}}
{{- range include "herd.roles" . | fromYamlArray }}
{{- if and (eq .role "experts") $.Values.workers.experts.spreadCopiesOverNodes }}
{{- $parts := include "herd.expertGroups" $ | int }}
{{- range $number := until $parts }}
- {role: experts, component: experts, group: experts-{{ $number }}, parts: {{ $parts }}, resources: {herd_experts: "1", herd_experts_{{ $number }}: "1"}}
{{- end }}
{{- else }}
- {role: {{ .role }}, component: {{ .group }}, group: {{ .group }}, parts: 1, resources: { {{- .resource }}: "1"}}
{{- end }}
{{- end }}
{{- end -}}

{{- define "herd.expertGroups" -}}
{{- dig "experts" "groups" nil .Values.settings | default 2 | int -}}
{{- end -}}
