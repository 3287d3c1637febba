"""What a pipeline asks of Kubernetes, from the SDK's calls to the typed reading.

kfp reads the annotations, so they are no strings here.
"""

from pathlib import Path

from kfp import compiler, dsl, kubernetes

from pipelines.ir import Container, Dag, Resources, TaskOutput
from pipelines.placeholders import Placeholder
from pipelines.platform_spec import (
    EmptyDir,
    EnvironmentSource,
    EphemeralVolume,
    KubernetesConfig,
    MatchExpression,
    SecretVolume,
    Toleration,
)
from pipelines.reader import load_pipeline


def test_what_a_pod_asks_for_is_read(tmp_path: Path) -> None:
    @dsl.container_component
    def measure(size: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
        return dsl.ContainerSpec(image="i:1.0.0", command=["true"])

    @dsl.container_component
    def work(memory: str) -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image="i:1.0.0", command=["true"])

    @dsl.pipeline(name="toy")
    def toy() -> None:
        memory = measure().outputs["size"]
        task = work(memory=memory).set_memory_limit(memory).set_cpu_request("500m")
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(2)
        kubernetes.use_secret_as_env(task, "keys", {"key": "KEY"}, optional=True)
        kubernetes.use_config_map_as_env(task, "places", {"url": "URL"})
        kubernetes.use_secret_as_volume(task, "signing", "/signing", optional=True)
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="1Gi")
        kubernetes.add_ephemeral_volume(
            task, "scratch", "/scratch", ["ReadWriteOnce"], "9Gi", "fast"
        )
        kubernetes.add_toleration(task, key="gpu", operator="Exists", effect="NoSchedule")
        kubernetes.add_node_selector(task, "pool", "a")
        kubernetes.add_node_affinity(
            task, match_expressions=[{"key": "zone", "operator": "In", "values": ["z"]}]
        )
        kubernetes.add_pod_label(task, "step", "work")
        kubernetes.set_timeout(task, 60)
        kubernetes.set_security_context(task, run_as_user=7, run_as_non_root=True)

    file = tmp_path / "toy.yaml"
    compiler.Compiler().compile(toy, str(file))
    pipeline = load_pipeline(file)
    container = pipeline.components["comp-work"].implementation
    root = pipeline.root.implementation
    assert isinstance(container, Container) and isinstance(root, Dag)
    task = root.tasks["work"]
    assert set(task.parameters) == {"memory"}
    (channel,) = task.pod_parameters
    assert task.pod_parameters[channel] == TaskOutput("measure", "size")
    assert container.resources == Resources(
        cpu_request=("500m",),
        memory_limit=(Placeholder("inputs.parameters", channel),),
        accelerator_type=("nvidia.com/gpu",),
        accelerator_count=("2",),
    )
    assert container.kubernetes == KubernetesConfig(
        secrets=(EnvironmentSource("keys", {"KEY": "key"}, True),),
        config_maps=(EnvironmentSource("places", {"URL": "url"}, False),),
        secret_volumes=(SecretVolume("signing", "/signing", True),),
        empty_dirs=(EmptyDir("shm", "/dev/shm", "Memory", "1Gi"),),
        ephemeral_volumes=(
            EphemeralVolume("scratch", "/scratch", "9Gi", ("ReadWriteOnce",), "fast"),
        ),
        node_selector={"pool": "a"},
        tolerations=(Toleration("gpu", "Exists", "", "NoSchedule"),),
        affinity=(MatchExpression("zone", "In", ("z",)),),
        labels={"step": "work"},
        timeout=60,
        user=7,
        non_root=True,
    )
