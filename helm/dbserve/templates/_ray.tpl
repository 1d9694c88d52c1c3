{{/* KubeRay's own probes call wget, which the images do without. */}}
{{- define "dbserve.rayletProbes" -}}
startupProbe:
  httpGet: {path: /api/local_raylet_healthz, port: agent}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /api/local_raylet_healthz, port: agent}
  periodSeconds: 10
  timeoutSeconds: 8
  failureThreshold: 12
{{- end }}

{{/* The template of a worker's pod; dict "root" "group". */}}
{{- define "dbserve.workerPod" -}}
{{- $names := dict "root" .root "component" "ray-worker" -}}
{{- if ge (int .root.Values.ray.drainSeconds) (int .root.Values.ray.terminationSeconds) }}
{{- fail "ray.drainSeconds must be less than ray.terminationSeconds: a pod would be killed before its last checkpoint" }}
{{- end }}
metadata:
  labels: {{ include "dbserve.labels" $names | nindent 4 }}
  annotations:
    # Ray's autoscaler removes idle nodes; nobody else should take a node that trains.
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
spec:
  serviceAccountName: {{ include "dbserve.fullname" .root }}
  {{- include "dbserve.pod" (dict "root" .root "place" .group) | nindent 2 }}
  {{- with .group.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with .group.topologySpreadConstraints }}
  topologySpreadConstraints: {{ toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .root.Values.ray.terminationSeconds }}
  containers:
    - name: ray-worker
      image: {{ include "dbserve.image" (dict "root" .root "image" .root.Values.ray.image) }}
      imagePullPolicy: {{ .root.Values.ray.image.pullPolicy }}
      ports:
        - {name: metrics, containerPort: 8080}
        - {name: agent, containerPort: 52365}
      env:
        {{- include "dbserve.env.redis" (dict "root" .root "user" "worker") | nindent 8 }}
        {{- include "dbserve.env.artifacts" .root | nindent 8 }}
        {{- include "dbserve.env.settings" .root | nindent 8 }}
        # Workers keep the memory of freed tensors, as those of `dbserve up` do.
        - {name: MALLOC_ARENA_MAX, value: "1"}
        - {name: MALLOC_MMAP_THRESHOLD_, value: "1073741824"}
        - {name: MALLOC_TRIM_THRESHOLD_, value: "4611686018427387904"}
      {{- include "dbserve.envFrom.artifacts" .root | nindent 6 }}
      {{- include "dbserve.rayletProbes" . | nindent 6 }}
      readinessProbe:
        httpGet: {path: /api/local_raylet_healthz, port: agent}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 10
      lifecycle:
        preStop:
          # Tells Ray that this node goes, and waits until the blocks on it have saved and left.
          exec: {command: [python, -m, workers.leaving, --seconds, "{{ .root.Values.ray.drainSeconds }}"]}
      {{- include "dbserve.confined" . | nindent 6 }}
      resources: {{ toYaml .group.resources | nindent 8 }}
      volumeMounts:
        {{- include "dbserve.mounts" .root | nindent 8 }}
        - {name: shared-mem, mountPath: /dev/shm}
  volumes:
    {{- include "dbserve.volumes" (dict "root" .root "cache" .group.cache) | nindent 4 }}
    - name: shared-mem
      emptyDir: {medium: Memory, sizeLimit: {{ .group.sharedMemory }}}
{{- end }}

{{- define "dbserve.gcsRedis" -}}
{{- $url := urlParse (include "dbserve.redisUrl" .) -}}
{{- ternary "rediss://" "" (eq $url.scheme "rediss") -}}{{ $url.host }}{{ if not (regexMatch ":[0-9]+$" $url.host) }}:6379{{ end }}
{{- end }}
