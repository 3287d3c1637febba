"""A service of each kind, as somebody wrote it by hand."""

BY_HAND = "s3://models/by-hand/"
INFERENCE_SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: tiny
spec:
  predictor:
    minReplicas: 2
    model:
      modelFormat: {name: vLLM}
      image: vllm/vllm-openai:v0.32.0
      storageUri: s3://models/by-hand/
      args: [--gpu-memory-utilization, "0.9", --max-model-len=512]
      resources: {limits: {nvidia.com/gpu: "1"}}
"""
LLM_INFERENCE_SERVICE = """\
apiVersion: serving.kserve.io/v1alpha2
kind: LLMInferenceService
metadata:
  name: tiny
spec:
  model: {uri: s3://models/by-hand/, name: tiny}
  template:
    containers:
    - name: main
      image: vllm/vllm-openai:v0.32.0
      env:
      - {name: HF_HUB_OFFLINE, value: "1"}
      - {name: VLLM_ADDITIONAL_ARGS, value: --gpu-memory-utilization 0.9 --max-model-len=512}
"""
DEPLOYMENT = """\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tiny
spec:
  selector: {matchLabels: {app: tiny}}
  template:
    metadata: {labels: {app: tiny}}
    spec:
      containers:
      - name: proxy
        image: example.org/proxy:1
      - name: vllm
        image: vllm/vllm-openai:v0.32.0
        args: [s3://models/by-hand/, --gpu-memory-utilization, "0.9", --max-model-len=512]
"""
SERVICES = {
    "InferenceService": INFERENCE_SERVICE,
    "LLMInferenceService": LLM_INFERENCE_SERVICE,
    "Deployment": DEPLOYMENT,
}
