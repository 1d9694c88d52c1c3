{{/* Short enough for what KubeRay and the chart append to it. */}}
{{- define "dbserve.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 32 | trimSuffix "-" -}}
{{- end }}

{{- define "dbserve.ray" -}}{{ include "dbserve.fullname" . }}-ray{{- end }}

{{/* The Service that KubeRay makes for the head is called as we say. */}}
{{- define "dbserve.rayAddress" -}}{{ include "dbserve.ray" . }}-head.{{ .Release.Namespace }}.svc:6379{{- end }}

{{/* Labels that select the pods of one component; dict "root" "component". */}}
{{- define "dbserve.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "dbserve.labels" -}}
{{ include "dbserve.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* repository@digest, or repository:tag; dict "root" "image". */}}
{{- define "dbserve.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ default .root.Chart.AppVersion .image.tag }}
{{- end -}}
{{- end }}

{{- define "dbserve.secrets.keys" -}}{{ default (printf "%s-keys" (include "dbserve.fullname" .)) .Values.keys.existingSecret }}{{- end }}
{{- define "dbserve.secrets.redis" -}}{{ default (printf "%s-redis" (include "dbserve.fullname" .)) .Values.redis.existingSecret }}{{- end }}
{{- define "dbserve.secrets.token" -}}{{ default (printf "%s-ray-token" (include "dbserve.fullname" .)) .Values.ray.token.existingSecret }}{{- end }}

{{- define "dbserve.artifactsClaim" -}}
{{ default (printf "%s-artifacts" (include "dbserve.fullname" .)) .Values.artifacts.pvc.existingClaim }}
{{- end }}

{{/* The value of a key of a Secret of ours: what it was at the last upgrade, or a new one; dict "root" "secret" "key". */}}
{{- define "dbserve.kept" -}}
{{- $there := lookup "v1" "Secret" .root.Release.Namespace .secret -}}
{{- $data := default dict (default dict $there).data -}}
{{- if hasKey $data .key -}}
{{ index $data .key | b64dec }}
{{- else -}}
{{ randAlphaNum 48 }}
{{- end -}}
{{- end }}
