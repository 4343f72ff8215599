{{/* How many pods of each role: as settings make replicas, unless values say so. */}}

{{/* As a JSON patch of a RayCluster that runs: how many pods of each group. With autoscaling, Ray says how many at once. */}}
{{- define "herd.scalePatch" -}}
{{- $operations := list -}}
{{- $index := 0 -}}
{{- range include "herd.workerGroups" . | fromYamlArray -}}
{{- $made := include "herd.replicas" (merge (dict "root" $) .) | fromYaml -}}
{{- if $made.maxReplicas -}}
{{- $path := printf "/spec/workerGroupSpecs/%d" $index -}}
{{- $operations = append $operations (dict "op" "test" "path" (printf "%s/groupName" $path) "value" .group) -}}
{{- range $key := ternary (list "minReplicas" "maxReplicas") (list "minReplicas" "maxReplicas" "replicas") $.Values.autoscaling.enabled -}}
{{- $operations = append $operations (dict "op" "replace" "path" (printf "%s/%s" $path $key) "value" (index $made $key | int)) -}}
{{- end -}}
{{- $index = add1 $index -}}
{{- end -}}
{{- end -}}
{{- toJson $operations -}}
{{- end -}}

{{/* Fewest, first and most replicas that settings make of a role, as YAML. */}}
{{- define "herd.made" -}}
{{- $s := .root.Values.settings -}}
{{- $min := 0 -}}{{- $first := 0 -}}{{- $max := 0 -}}
{{- if eq .role "frontDoors" -}}
{{- $min = dig "scaling" "front_door_min_replicas" 1 $s | int -}}
{{- $first = $min -}}
{{- $max = dig "scaling" "front_door_max_replicas" nil $s | default $first | int -}}
{{- else if eq .role "routers" -}}
{{- $first = dig "router" "replicas" 1 $s | int -}}
{{- $asked := dig "scaling" "router_min_replicas" nil $s -}}
{{- $min = ternary $first ($asked | int) (kindIs "invalid" $asked) -}}
{{- $max = dig "scaling" "router_max_replicas" nil $s | default $first | int -}}
{{- if dig "long" "from_tokens" nil $s -}}
{{- $long := dig "long" "replicas" 1 $s | int -}}
{{- $asked = dig "long" "min_replicas" nil $s -}}
{{- $min = add $min (ternary $long ($asked | int) (kindIs "invalid" $asked)) -}}
{{- $first = add $first $long -}}
{{- $max = add $max (dig "long" "max_replicas" nil $s | default $long | int) -}}
{{- end -}}
{{- else if eq .role "experts" -}}
{{- if not (dig "experts" "in_router" false $s) -}}
{{- $groups := include "herd.expertGroups" .root | int -}}
{{- $copies := dig "experts" "replicas_per_group" 1 $s | int -}}
{{- $asked := dig "scaling" "experts_min_replicas" nil $s -}}
{{- $first = mul $groups $copies -}}
{{- $min = mul $groups (ternary $copies ($asked | int) (kindIs "invalid" $asked)) -}}
{{- $max = mul $groups (dig "scaling" "experts_max_replicas" nil $s | default $copies | int) -}}
{{- end -}}
{{- else -}}
{{- $first = dig "context" "shards" 0 $s | int -}}
{{- $min = $first -}}
{{- $max = dig "context" "max_shards" nil $s | default $first | int -}}
{{- end -}}
min: {{ $min }}
first: {{ $first }}
max: {{ $max }}
{{- end -}}

{{/*
replicas, minReplicas and maxReplicas of each of the groups that share a role's pods, as YAML. Takes root, role, parts.
Refuses numbers that contradict settings.
*/}}
{{- define "herd.replicas" -}}
{{- $worker := index .root.Values.workers .role -}}
{{- $made := include "herd.made" . | fromYaml -}}
{{- $scales := .root.Values.autoscaling.enabled -}}
{{- $first := ternary $made.first $made.max $scales | int -}}
{{- $min := ternary $made.min $made.max $scales | int -}}
{{- $max := $made.max | int -}}
{{- /* One more of each group, which is asked for only while a node is left: the replica that takes over starts before the old one ends. */ -}}
{{- if and $scales $max -}}{{- $max = add $max .parts | int -}}{{- end -}}
{{- if not (kindIs "invalid" $worker.replicas) -}}
{{- $first = $worker.replicas | int -}}
{{- $min = $first -}}
{{- $max = max $max $first | int -}}
{{- $mayBeNone := and $scales (eq (int $made.min) 0) -}}
{{- $isDense := and (eq .role "experts") (eq $first 0) (not $mayBeNone) -}}
{{- if $isDense -}}{{- $max = 0 -}}{{- end -}}
{{- if and (lt $first (int (ternary $made.min $made.max $scales))) (not $isDense) -}}
{{- fail (printf "workers.%s.replicas: expected at least %v, the replicas that settings make, found %d; raise it, or change settings" .role (ternary $made.min $made.max $scales) $first) -}}
{{- end -}}
{{- end -}}
{{- if not (kindIs "invalid" $worker.maxReplicas) -}}
{{- if not $scales -}}
{{- fail (printf "workers.%s.maxReplicas: expected none without autoscaling.enabled, found %v; enable it, or set replicas alone" .role $worker.maxReplicas) -}}
{{- end -}}
{{- if lt (int $worker.maxReplicas) $first -}}
{{- fail (printf "workers.%s.maxReplicas: expected at least replicas, %d, found %v; raise it, or lower replicas" .role $first $worker.maxReplicas) -}}
{{- end -}}
{{- if lt (int $worker.maxReplicas) (int $made.max) -}}
{{- fail (printf "workers.%s.maxReplicas: expected at least %v, the most replicas that settings make, found %v; raise it, or change settings" .role $made.max $worker.maxReplicas) -}}
{{- end -}}
{{- $max = $worker.maxReplicas | int -}}
{{- end -}}
{{- $parts := .parts | int -}}
{{- range list (list "replicas" $first) (list "maxReplicas" $max) -}}
{{- if mod (last .) $parts -}}
{{- fail (printf "workers.experts.%s: expected a multiple of %d, settings.experts.groups, with spreadCopiesOverNodes, found %d; each group has as many pods" (first .) $parts (last .)) -}}
{{- end -}}
{{- end -}}
replicas: {{ div $first $parts }}
minReplicas: {{ div $min $parts }}
maxReplicas: {{ div $max $parts }}
{{- end -}}
