{{- define "prism.fullname" -}}
{{- if contains "prism" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-prism" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Every template below takes (dict "root" $ "component" "policy" ...). */}}
{{- define "prism.name" -}}{{ include "prism.fullname" .root }}-{{ .component }}{{- end }}

{{- define "prism.selector" -}}
app.kubernetes.io/name: prism
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "prism.labels" -}}
{{ include "prism.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{- define "prism.metadata" -}}
name: {{ include "prism.name" . }}
namespace: {{ .root.Release.Namespace }}
labels: {{- include "prism.labels" . | nindent 2 }}
{{- end }}

{{/* image: a target of deploy/docker/Dockerfile; images with torch have a CUDA build beside the CPU's. */}}
{{- define "prism.image" -}}
{{- $tag := .root.Values.image.tag | default .root.Chart.AppVersion -}}
{{- if and (eq .root.Values.device "cuda") (has .image (list "experts" "trainer")) }}{{ $tag = printf "%s-cuda" $tag }}{{ end -}}
image: {{ printf "%sprism-%s:%s" .root.Values.image.registry .image $tag | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext: {{- include "prism.containerSecurity" . | nindent 2 }}
{{- end }}

{{- define "prism.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* settings: nodeSelector, tolerations, spread; user: 10001 but for Redis. */}}
{{- define "prism.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false # they would set PRISM_* variables of their own
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user | default 10001 }}
  runAsGroup: {{ .user | default 10001 }}
  fsGroup: {{ .user | default 10001 }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{- range . }}
  - name: {{ . }}
{{- end }}{{ end }}
{{- with .settings.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .settings.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .settings.spread }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector: {matchLabels: {{ include "prism.selector" . | fromYaml | toJson }}}
{{- end }}
{{- end }}

{{/* Memory is limited to what is requested, unless limits say otherwise. */}}
{{- define "prism.resources" -}}
{{- $resources := deepCopy .settings.resources -}}
{{- $memory := dict "memory" (required (printf "%s.resources.requests.memory: it is the limit too" .component) $resources.requests.memory) -}}
{{- $_ := set $resources "limits" (merge ($resources.limits | default dict) $memory) -}}
{{- if and (eq .root.Values.device "cuda") .settings.gpus -}}
{{- $limits := merge (dict "nvidia.com/gpu" .settings.gpus) $resources.limits -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
resources: {{- toYaml $resources | nindent 2 }}
{{- end }}

{{- define "prism.runFolder" -}}/runs/{{ .root.Values.run.name }}{{- end }}
{{- define "prism.blobs" -}}{{ .root.Values.blobs.url | default (printf "%s/blobs" (include "prism.runFolder" .)) }}{{- end }}
{{/* What a container needs to reach the bucket of images. */}}
{{- define "prism.blobsSecret" -}}
{{- with .root.Values.blobs.secret }}
envFrom: [{secretRef: {name: {{ . }}}}]
{{- end }}
{{- end }}
{{- define "prism.secretName" -}}{{ .root.Values.secrets.existing | default (include "prism.fullname" .root) }}{{- end }}
{{- define "prism.claim" -}}{{ .root.Values.storage.existingClaim | default (printf "%s-runs" (include "prism.fullname" .root)) }}{{- end }}
{{- define "prism.url" -}}http://{{ include "prism.name" . }}:8000{{- end }}
{{/* Where a run's model lies: from the hub, or made by its preparation. */}}
{{- define "prism.modelFolder" -}}
{{- with .root.Values.model.hub }}/runs/models/{{ . }}{{ else }}{{ include "prism.runFolder" . }}/model{{ end -}}
{{- end }}
{{- define "prism.redisAddress" -}}
{{- if .root.Values.redis.bundled }}{{ include "prism.fullname" .root }}-redis:6379{{ else }}{{ required "redis.address: host:port of your Redis" .root.Values.redis.address }}{{ end -}}
{{- end }}

{{- define "prism.commonEnv" -}}
- {name: PRISM_SECRETS_DIR, value: /secrets}
- {name: PRISM_LOG_FORMAT, value: json}
- {name: PRISM_RUN, value: {{ .root.Values.run.name }}}
{{- with .root.Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- range $name, $value := .settings.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "prism.weightsEnv" -}}
{{ include "prism.commonEnv" . }}
- {name: PRISM_MODEL, value: {{ include "prism.modelFolder" . }}}
- {name: PRISM_WEIGHTS_ROOT, value: {{ include "prism.runFolder" . }}/weights}
{{- if .root.Values.trainer.enabled }}
- {name: PRISM_RUN_LIMITS, value: {{ include "prism.runLimits" . }}}
{{- end }}
- {name: PRISM_STATE_DIR, value: /state}
- {name: PRISM_DEVICE, value: {{ .root.Values.device }}}
{{- end }}

{{/* replicas: whether names stand for all replicas (the trainer pushes weights to each) or for any one. */}}
{{- define "prism.endpointsEnv" -}}
{{- $all := ternary "-replicas" "" (default false .replicas) -}}
{{ include "prism.commonEnv" . }}
- {name: PRISM_BLOBS, value: {{ include "prism.blobs" . | quote }}}
- {name: PRISM_POLICY_URL, value: "http://{{ include "prism.fullname" .root }}-policy{{ $all }}:8000"}
- {name: PRISM_PERCEPTION_URL, value: "http://{{ include "prism.fullname" .root }}-perception{{ $all }}:8000"}
- {name: PRISM_REASONING_URL, value: "http://{{ include "prism.fullname" .root }}-reasoning{{ $all }}:8000"}
- {name: PRISM_GRADER_URL, value: "http://{{ include "prism.fullname" .root }}-grader:8000"}
{{- end }}

{{/* Of the console and its workers: where runs are, and what they keep of their own. */}}
{{- define "prism.consoleEnv" -}}
- {name: PRISM_SECRETS_DIR, value: /secrets}
- {name: PRISM_LOG_FORMAT, value: json}
- {name: PRISM_RUNS, value: /runs}
- {name: PRISM_STATE_DIR, value: /state}
{{- range $name, $value := .settings.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
{{- define "prism.consoleMounts" -}}
- {name: secrets, mountPath: /secrets, readOnly: true}
- {name: runs, mountPath: /runs}
- {name: runs, mountPath: /state, subPath: .console}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* secrets: those that the component reads, beside the token of data routes. */}}
{{- define "prism.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ include "prism.secretName" . }}
    defaultMode: 0440
    items:
      {{- range prepend (default list .secrets) "prism_token" }}
      - {key: {{ . }}, path: {{ . }}}
      {{- end }}
{{- end }}

{{/* On the node's disk; a pod that writes more is evicted. */}}
{{- define "prism.tmpVolume" -}}
- {name: tmp, emptyDir: {sizeLimit: {{ .settings.tmp }}}}
{{- end }}

{{- define "prism.probes" -}}
startupProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  failureThreshold: {{ div (.settings.startupSeconds | default 300) 5 }}
readinessProbe:
  httpGet: {path: /readyz, port: http}
  periodSeconds: 5
  timeoutSeconds: 6
livenessProbe:
  httpGet: {path: /healthz, port: http}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: {{ if eq .component "policy" }}{{ div .settings.startupSeconds 10 }} # its supervisor restarts a server that hangs{{ else }}6{{ end }}
{{- end }}

{{/* [limits] of the run's configuration, as the trainer's preparation writes them down. */}}
{{- define "prism.runLimits" -}}{{ include "prism.runFolder" . }}/limits.json{{- end }}

{{/* Until the trainer's preparation has made the model and said its limits; and the folder of what the service keeps. */}}
{{- define "prism.awaitModel" -}}
- name: await-model
  {{- include "prism.image" . | nindent 2 }}
  command: [python3, -m, prism.stack.await_model]
  args: [{{ include "prism.modelFolder" . }}/config.json, {{ if .root.Values.trainer.enabled }}{{ include "prism.runLimits" . }}, {{ end }}--, {{ include "prism.runFolder" . }}/weights, {{ include "prism.runFolder" . }}/services/{{ .component }}]
  resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {memory: 256Mi}}
  volumeMounts:
    - {name: runs, mountPath: /runs}
{{- end }}

{{/* Of who makes the run. */}}
{{- define "prism.runMounts" -}}
- {name: runs, mountPath: /runs}
- {name: tmp, mountPath: /tmp}
- {name: shared-memory, mountPath: /dev/shm}
{{- if .root.Values.run.config }}
- {name: config, mountPath: /config, readOnly: true}
{{- end }}
{{- end }}

{{- define "prism.weightsVolumeMounts" -}}
- {name: secrets, mountPath: /secrets, readOnly: true}
- {name: runs, mountPath: /runs, readOnly: true}
- {name: runs, mountPath: /state, subPath: {{ .root.Values.run.name }}/services/{{ .component }}}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{/* A Service for any one replica, and with admin a headless one for each, admin port included. */}}
{{- define "prism.services" -}}
apiVersion: v1
kind: Service
metadata: {{- include "prism.metadata" . | nindent 2 }}
spec:
  selector: {{- include "prism.selector" . | nindent 4 }}
  ports: [{name: http, port: 8000, targetPort: http}]
{{- if .admin }}
---
apiVersion: v1
kind: Service
metadata:
  name: {{ include "prism.name" . }}-replicas
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "prism.labels" . | nindent 4 }}
    prism/replicas: "true"
spec:
  clusterIP: None
  publishNotReadyAddresses: true # a push waits for a replica that is starting
  selector: {{- include "prism.selector" . | nindent 4 }}
  ports:
    - {name: http, port: 8000, targetPort: http}
    - {name: admin, port: 8001, targetPort: admin}
{{- end }}
{{- end }}

{{- define "prism.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {{- include "prism.metadata" . | nindent 2 }}
spec:
  maxUnavailable: 1
  selector: {matchLabels: {{ include "prism.selector" . | fromYaml | toJson }}}
{{- end }}

{{- define "prism.cpuAutoscaler" -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{- include "prism.metadata" . | nindent 2 }}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: {{ include "prism.name" . }}}
  minReplicas: {{ .settings.autoscaling.min }}
  maxReplicas: {{ .settings.autoscaling.max }}
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ .settings.autoscaling.cpuPercent }}}}
{{- end }}
