{{/* Peers of one component's pods; dict "root" "component". */}}
{{- define "dbserve.peer" -}}
- podSelector:
    matchLabels: {{ include "dbserve.selector" . | nindent 6 }}
{{- end }}

{{/* Every pod with a Ray node, the driver's too: they talk to each other on ports of Ray's choice. */}}
{{- define "dbserve.rayPeers" -}}
{{- range $component := list "ray-head" "ray-worker" "reconciler" }}
{{ include "dbserve.peer" (dict "root" $ "component" $component) }}
{{- end }}
{{- end }}

{{- define "dbserve.egress.dns" -}}
{{- with .Values.networkPolicy.dns }}
{{- if not (or .namespaces .cidrs) }}
{{- fail "networkPolicy.dns needs namespaces or cidrs: without names nothing finds anything" }}
{{- end -}}
- to:
    {{- range .namespaces }}
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ . }}}
    {{- end }}
    {{- range .cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
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
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports: [{port: {{ default 6379 $port }}, protocol: TCP}]
{{- end }}
{{- end }}

{{/* HTTPS to the outside, never to where clouds give credentials away; and to the pods' own identity, where it is named. */}}
{{- define "dbserve.egress.internet" -}}
{{- with .Values.networkPolicy.internet }}
{{- if .enabled }}
- to:
    - ipBlock: {{ include "dbserve.publicBlock" . | nindent 8 }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end }}
{{- with .Values.networkPolicy.podIdentity }}
{{- if .cidrs }}
- to:
    {{- range .cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
    {{- end }}
  ports:
    {{- range .ports }}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "dbserve.egress.extra" -}}
{{- with .Values.networkPolicy.extraEgress }}{{ toYaml . }}{{ end }}
{{- end }}

{{/* A cidr without what is left out of it. Kubernetes refuses an exception that is not a part of its block. */}}
{{- define "dbserve.publicBlock" -}}
{{- $block := include "dbserve.prefix" .cidr -}}
{{- $except := list -}}
{{- range concat .except (list "169.254.0.0/16" "fe80::/10" "100.100.100.200/32" "168.63.129.16/32" "192.0.0.192/32" "fd00:42::42/128" "fd00:c1::a9fe:a9fe/128" "fd00:ec2::/32" "fd20:ce::254/128") | uniq -}}
{{- $left := include "dbserve.prefix" . -}}
{{- if hasPrefix $left $block -}}
{{- fail (printf "networkPolicy.internet.cidr is %s, of which %s leaves nothing: see except, podIdentity and extraEgress" $.cidr .) -}}
{{- end -}}
{{- if hasPrefix $block $left }}{{ $except = append $except . }}{{ end -}}
{{- end -}}
cidr: {{ .cidr | quote }}
{{- with $except }}
except: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The bits that all addresses of a cidr begin with, after 4 or 6: one cidr is within another if its own begin with those. */}}
{{- define "dbserve.prefix" -}}
{{- $address := splitList "/" . | first -}}
{{- $bits := "" -}}
{{- if contains ":" $address -}}
{{- $sides := list -}}
{{- range splitList "::" $address -}}
{{- $digits := "" -}}
{{- range splitList ":" . | compact -}}
{{- $digits = print $digits (repeat (sub 4 (len .) | int) "0") (lower .) -}}
{{- end -}}
{{- $sides = append $sides $digits -}}
{{- end -}}
{{- range splitList "" (join (repeat (sub 32 (join "" $sides | len) | int) "0") $sides) -}}
{{- $bits = print $bits (printf "%04b" (splitList . "0123456789abcdef" | first | len)) -}}
{{- end -}}
{{- else -}}
{{- range splitList "." $address -}}
{{- $bits = print $bits (printf "%08b" (int .)) -}}
{{- end -}}
{{- end -}}
{{ ternary "6" "4" (contains ":" $address) }}{{ trunc (splitList "/" . | last | int) $bits }}
{{- end }}

{{- define "dbserve.fromPrometheus" -}}
- namespaceSelector:
    matchLabels: {kubernetes.io/metadata.name: {{ .Values.networkPolicy.prometheusNamespace }}}
{{- end }}
