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
