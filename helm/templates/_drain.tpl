{{/*
How long a pod may take to end, in one place. Each holds the next:

  grace     drain + 15 s: terminationGracePeriodSeconds; Ray ends its processes
  drain     drain.seconds, or shutdown + 5 s: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S; Ray Serve notices, and stops replicas
  shutdown  lame duck + longest + 2 s, at least 10: Ray Serve's graceful_shutdown_timeout_s; a front door closes its ports
  lame duck settings.limits.lame_duck_s: a front door that is stopped says that it is not ready, and takes requests still
  longest   settings.limits.drain_s: the longest request that must finish where it began

cluster/drain_times.py computes the same. A front door that says that it is not ready must be without new connections when
its lame duck time ends: by then its probe has failed as often as it takes, and every node has heard of it.
*/}}

{{- define "herd.readinessPeriod" -}}2{{- end -}}
{{- define "herd.readinessFailures" -}}2{{- end -}}

{{- define "herd.lameDuckSeconds" -}}
{{- $least := add (mul (include "herd.readinessPeriod" .) (include "herd.readinessFailures" .)) 2 -}}
{{- $found := dig "limits" "lame_duck_s" 6 .Values.settings | float64 -}}
{{- if lt $found (float64 $least) -}}
{{- fail (printf "settings.limits.lame_duck_s: expected at least %d, in which readiness probes notice that a front door leaves, found %v; raise it" $least $found) -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{- define "herd.shutdownSeconds" -}}
{{- maxf 10 (addf (include "herd.lameDuckSeconds" . | float64) (dig "limits" "drain_s" 10 .Values.settings | float64) 2) | ceil | int -}}
{{- end -}}

{{- define "herd.drainSeconds" -}}
{{- $least := add (include "herd.shutdownSeconds" .) 5 | int -}}
{{- if kindIs "invalid" .Values.drain.seconds -}}
{{- $least -}}
{{- else if lt (int .Values.drain.seconds) $least -}}
{{- fail (printf "drain.seconds: expected at least %d, as settings.limits.drain_s is %v, found %v; raise it, or lower the setting" $least (dig "limits" "drain_s" 10 .Values.settings) .Values.drain.seconds) -}}
{{- else -}}
{{- int .Values.drain.seconds -}}
{{- end -}}
{{- end -}}

{{- define "herd.graceSeconds" -}}
{{- add (include "herd.drainSeconds" .) 15 -}}
{{- end -}}
