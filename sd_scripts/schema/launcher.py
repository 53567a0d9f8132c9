"""Settings of `accelerate launch`, which starts the trainer's processes."""

from .option import Is, option, section


@section("Accelerate launch", target="launcher", place="Accelerate")
class LauncherOptions:
    """Processes, machines, GPUs."""

    num_processes: int = option(
        1,
        "Processes in all, one for each GPU.",
        label="Processes",
        minimum=1,
        step=1,
    )
    num_machines: int = option(1, "Machines that train together.", label="Machines", minimum=1, step=1)
    multi_gpu: bool = option(
        False,
        "Train on several GPUs. Set together with the number of processes.",
        label="Several GPUs",
    )
    gpu_ids: str | None = option(
        None,
        "Numbers of the GPUs to use, separated by commas, or all. Empty for the first ones.",
        label="GPU numbers",
    )
    num_cpu_threads_per_process: int = option(
        2,
        "CPU threads that each process may use for computing. Raise it when training on the CPU.",
        label="CPU threads per process",
        minimum=1,
        step=1,
        unit="threads",
    )
    machine_rank: int = option(
        0,
        "Number of this machine among those that train together; the first is 0.",
        label="Number of this machine",
        minimum=0,
        step=1,
    )
    main_process_ip: str | None = option(
        None,
        "Address of the first machine.",
        label="Address of the first machine",
    )
    main_process_port: int | None = option(
        None,
        "Port on which the processes find each other. Change it if two runs at once get in each other's way.",
        label="Port",
        minimum=1,
        maximum=65535,
        step=1,
        off=0,
    )
    dynamo_mode: str = option(
        "default",
        "What the compiler aims for: default, less overhead for small batches, or the fastest code after a long "
        "compilation.",
        label="Compiler mode",
        choices=("default", "reduce-overhead", "max-autotune"),
        when=Is("torch_compile", True),
    )
    dynamo_use_fullgraph: bool = option(
        False,
        "Compile the model in one piece or not at all.",
        label="Compile in one piece",
        when=Is("torch_compile", True),
    )
    dynamo_use_dynamic: bool = option(
        False,
        "Compile for changing shapes, so that new bucket sizes need no new compilation.",
        label="Compile for changing shapes",
        when=Is("torch_compile", True),
    )
    extra_accelerate_launch_args: str | None = option(
        None,
        "Further arguments of accelerate launch, as typed in a terminal.",
        label="Further launch arguments",
    )
