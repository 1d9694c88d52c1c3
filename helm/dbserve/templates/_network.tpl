{{/* Peers of one component's pods; dict "root" "component". */}}
{{- define "dbserve.peer" -}}
- podSelector:
    matchLabels: {{ include "dbserve.selector" . | nindent 6 }}
{{- end }}

{{- define "dbserve.egress.dns" -}}
- to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: kube-system}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end }}

{{- define "dbserve.egress.redis" -}}
{{- if .Values.redis.enabled -}}
- to: {{ include "dbserve.peer" (dict "root" . "component" "redis") | nindent 4 }}
  ports: [{port: 6379, protocol: TCP}]
{{- else -}}
{{- if not .Values.redis.external.cidrs }}
{{- fail "redis.external.cidrs is needed where network policies are on and Redis is not the chart's" }}
{{- end }}
{{- $port := (urlParse .Values.redis.external.url).host | splitList ":" | last | int -}}
- to:
    {{- range .Values.redis.external.cidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
  ports: [{port: {{ default 6379 $port }}, protocol: TCP}]
{{- end }}
{{- end }}

{{/* HTTPS to the outside, never to link-local addresses: there is where clouds give credentials away. */}}
{{- define "dbserve.egress.internet" -}}
{{- with .Values.networkPolicy.internet }}
{{- if .enabled }}
- to:
    - ipBlock:
        cidr: {{ .cidr }}
        except: {{ append .except "169.254.0.0/16" | uniq | toYaml | nindent 10 }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "dbserve.fromPrometheus" -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ .Values.networkPolicy.prometheusNamespace }}}
{{- end }}
