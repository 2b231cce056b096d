{{- /* Service names become environment variables of other pods: they begin with the component, since a variable that
begins with FLUID_ would be taken for a setting. */ -}}
{{- define "fluid.fullname" -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- .Values.fullnameOverride | default $both | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{- define "fluid.gateway" -}}gateway-{{ include "fluid.fullname" . }}{{- end -}}
{{- define "fluid.redis" -}}redis-{{ include "fluid.fullname" . }}{{- end -}}

{{- define "fluid.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "fluid.labels" -}}
{{ include "fluid.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "fluid.image" -}}
{{- $image := index .root.Values.image .name -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- /* The restricted pod security standard, with the user of the images. */ -}}
{{- define "fluid.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "fluid.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* The settings of a component as a list of variables: {root, drain, settings: [maps, the last one wins]}. */ -}}
{{- define "fluid.env" -}}
{{- $all := dict "FLUID_DRAIN_S" (toString .drain) -}}
{{- range .settings }}{{- $all = mergeOverwrite $all (deepCopy .) }}{{- end -}}
{{- range $name, $value := $all }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
- name: FLUID_REDIS_URL
{{- with .root.Values.redis }}
{{- if .bundled.enabled }}
  value: redis://{{ include "fluid.redis" $.root }}:6379
{{- else }}
  valueFrom:
    secretKeyRef:
      name: {{ .existingSecret | default (include "fluid.redis" $.root) }}
      key: {{ ternary .existingSecretKey "url" (ne .existingSecret "") }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Grace period: the drain, what passes before it, and ten seconds to end. */ -}}
{{- define "fluid.gracePeriod" -}}{{ add .drain .before 10 }}{{- end -}}

{{- define "fluid.spread" -}}
{{- range $topology := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ $topology }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels: {{- $.labels | nindent 6 }}
{{- end }}
{{- end -}}

{{- /* A model with modelDefaults filled in, and its name among Kubernetes' objects: {root, name, given}. As JSON. */ -}}
{{- define "fluid.model" -}}
{{- $model := mergeOverwrite (deepCopy .root.Values.modelDefaults) (deepCopy (.given | default dict)) -}}
{{- $_ := set $model "id" ($model.id | default .name) -}}
{{- $_ := set $model "checkpoint" ($model.checkpoint | default .name) -}}
{{- $_ := set $model "fullname" (printf "worker-%s-%s" (include "fluid.fullname" .root) .name | trunc 63 | trimSuffix "-") -}}
{{- toJson $model -}}
{{- end -}}

{{- /* Variables of the operator's own; the chart's are not among them: {extra, at}. */ -}}
{{- define "fluid.extraEnv" -}}
{{- range .extra }}
{{- if hasPrefix "FLUID_" .name }}
{{- fail (printf "%s has %s: FLUID_* belong into settings, or into the values that stand for them." $.at .name) }}
{{- else if has .name (list "HOME" "TRITON_CACHE_DIR") }}
{{- fail (printf "%s has %s, which the chart sets itself." $.at .name) }}
{{- end }}
{{- end }}
{{- with .extra }}{{ toYaml . }}{{ end }}
{{- end -}}

{{- /* Whole Secrets and ConfigMaps: the credentials of FLUID_RESULTS, and the operator's own: {root, extra}. */ -}}
{{- define "fluid.envFrom" -}}
{{- $all := list -}}
{{- with .root.Values.results.existingSecret }}{{- $all = append $all (dict "secretRef" (dict "name" .)) }}{{- end -}}
{{- with concat $all .extra }}envFrom: {{- toYaml . | nindent 2 }}{{- end -}}
{{- end -}}

{{- /* The folder of FLUID_RESULTS. */ -}}
{{- define "fluid.resultsVolume" -}}
{{- with .Values.results.existingClaim }}- {name: results, persistentVolumeClaim: {claimName: {{ . }}}}{{- end }}
{{- end -}}
