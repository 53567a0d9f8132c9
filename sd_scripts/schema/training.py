"""How long the training runs, in which precision, and how memory and devices are used."""

from .option import All, In, Is, option, section


@section("DeepSpeed")
class DeepSpeedOptions:
    """Splitting a large model over several GPUs with the deepspeed package."""

    deepspeed: bool = option(
        False,
        "Train with DeepSpeed, which must be installed (Linux). Only useful where one GPU cannot hold the run.",
        label="Use DeepSpeed",
    )
    zero_stage: int = option(
        2,
        "What is split over the GPUs: 0 nothing, 1 the optimizer's memory, 2 also gradients, 3 also the weights.",
        label="ZeRO stage",
        choices=(0, 1, 2, 3),
        when=Is("deepspeed", True),
    )
    offload_optimizer_device: str | None = option(
        None,
        "Move the optimizer's memory to the main memory (cpu) or a fast disk (nvme).",
        label="Optimizer memory on",
        choices=("cpu", "nvme"),
        when=Is("deepspeed", True),
    )
    offload_optimizer_nvme_path: str | None = option(
        None,
        "Folder on the fast disk for the optimizer's memory.",
        label="Disk folder for the optimizer",
        kind="folder",
        when=Is("offload_optimizer_device", "nvme"),
    )
    offload_param_device: str | None = option(
        None,
        "Move the weights to the main memory (cpu) or a fast disk (nvme). Only with ZeRO stage 3.",
        label="Weights on",
        choices=("cpu", "nvme"),
        when=Is("zero_stage", 3),
    )
    offload_param_nvme_path: str | None = option(
        None,
        "Folder on the fast disk for the weights.",
        label="Disk folder for the weights",
        kind="folder",
        when=Is("offload_param_device", "nvme"),
    )
    zero3_init_flag: bool = option(
        False,
        "Split the weights already while loading. Only with ZeRO stage 3, for models larger than the main memory.",
        label="Split while loading",
        when=Is("zero_stage", 3),
    )
    zero3_save_16bit_model: bool = option(
        False,
        "Collect the split weights as a 16-bit model when saving. Only with ZeRO stage 3.",
        label="Save as 16 bits",
        when=Is("zero_stage", 3),
    )
    fp16_master_weights_and_gradients: bool = option(
        False,
        "Keep the optimizer's own copy of weights and gradients in fp16 too. Saves memory, learns less exactly.",
        label="Optimizer copy in fp16",
        when=All(Is("deepspeed", True), In("zero_stage", 1, 2)),
    )


@section("Training")
class TrainingOptions(DeepSpeedOptions):
    """Length, precision, memory, several devices; DeepSpeed's options are inherited."""

    max_train_steps: int = option(
        1600,
        "Training ends after this many steps. A step is one change of the weights.",
        label="Steps",
        minimum=1,
        step=1,
        unit="steps",
    )
    max_train_epochs: int | None = option(
        None,
        "Training ends after this many epochs; an epoch shows every picture once for each repeat. Takes the place of "
        "the steps.",
        label="Epochs",
        minimum=1,
        step=1,
        off=0,
        unit="epochs",
        basic=True,
    )
    seed: int | None = option(
        None,
        "Start of all random draws: the same number and settings give the same result. Empty draws one.",
        label="Seed",
        minimum=0,
        maximum=2**32 - 1,
        step=1,
        basic=True,
    )
    gradient_accumulation_steps: int = option(
        1,
        "Batches added up before each change of the weights. Acts like a batch that many times larger, without its "
        "memory, but takes the time.",
        label="Batches per step",
        minimum=1,
        step=1,
        unit="batches",
    )
    gradient_checkpointing: bool = option(
        False,
        "Compute parts twice instead of remembering them. Saves much memory for about a quarter more time; switch on "
        "when memory runs out.",
        label="Gradient checkpointing",
    )
    cpu_offload_checkpointing: bool = option(
        False,
        "Keep what gradient checkpointing remembers in main memory instead of the GPU's. Saves still more memory, "
        "slower. Switches checkpointing on.",
        label="Checkpoints in main memory",
    )
    mixed_precision: str = option(
        "no",
        "Number format of the computation: bf16 on newer GPUs (from RTX 30), fp16 on older ones, no for 32 bits or a "
        "CPU.",
        label="Precision",
        choices=("no", "fp16", "bf16"),
        basic=True,
    )
    full_fp16: bool = option(
        False,
        "Also keep the trained weights and gradients in fp16. Saves memory, learns less exactly. Needs the precision "
        "fp16.",
        label="Everything in fp16",
        when=Is("full_bf16", False),
    )
    full_bf16: bool = option(
        False,
        "Also keep the trained weights and gradients in bf16. Saves memory, learns less exactly. Needs the precision "
        "bf16.",
        label="Everything in bf16",
        when=Is("full_fp16", False),
    )
    fp8_base: bool = option(
        False,
        "Store the weights of the base model in 8 bits. About half the memory for them, a little less exact. Needs "
        "precision fp16 or bf16.",
        label="Base model in 8 bits",
    )
    fp8_base_unet: bool = option(
        False,
        "Store only the U-Net of the base model in 8 bits and leave the text encoder as it is. Needs precision fp16 "
        "or bf16.",
        label="U-Net in 8 bits",
        methods=("network", "embedding", "xti", "controlnet", "lllite"),
    )
    sdpa: bool = option(
        False,
        "Use PyTorch's own fast attention. Works everywhere; the first choice.",
        label="PyTorch attention (SDPA)",
    )
    xformers: bool = option(
        False,
        "Use the attention of the xformers package, which must be installed. Worth a try on older GPUs.",
        label="xformers attention",
    )
    mem_eff_attn: bool = option(
        False,
        "Compute attention in pieces to save memory, slowly. Only where neither SDPA nor xformers works.",
        label="Attention in pieces",
    )
    torch_compile: bool = option(
        False,
        "Let PyTorch compile the model. The first steps take minutes, later ones may be faster; worth it for long "
        "runs.",
        label="Compile the model",
    )
    dynamo_backend: str = option(
        "inductor",
        "The compiler's back end. Change it only if inductor fails on your machine; no means not to compile.",
        label="Compiler back end",
        choices=(
            "no", "eager", "aot_eager", "inductor", "aot_ts_nvfuser", "nvprims_nvfuser", "cudagraphs", "ofi", "fx2trt",
            "onnxrt", "tensort", "tensorrt", "ipex", "tvm",
        ),
        when=Is("torch_compile", True),
    )  # fmt: skip
    lowram: bool = option(
        False,
        "Load the model straight into the GPU's memory. For machines with little main memory, such as free notebooks.",
        label="Little main memory",
        when=Is("highvram", False),
    )
    highvram: bool = option(
        False,
        "Keep everything in the GPU's memory instead of clearing it while caching. A little faster where memory is "
        "plenty.",
        label="Plenty of GPU memory",
        when=Is("lowram", False),
    )
    ddp_timeout: int | None = option(
        None,
        "Minutes that processes wait for each other before giving up. Raise it if caching many pictures on several "
        "GPUs runs into the limit.",
        label="Waiting time between processes",
        minimum=0,
        off=0,
        step=1,
        unit="minutes",
    )
    ddp_gradient_as_bucket_view: bool = option(
        False,
        "With several processes, let gradients share memory with the buffers that are exchanged. Saves some memory.",
        label="Gradients share the exchange buffers",
    )
    ddp_static_graph: bool = option(
        False,
        "With several processes, promise that every step computes the same graph. Somewhat faster; errors mean that "
        "it does not hold.",
        label="Same graph in every step",
    )
    initial_epoch: int | None = option(
        None,
        "Count epochs from this number, the first being 1. For going on from earlier weights with the same numbering.",
        label="Start at epoch",
        minimum=1,
        off=0,
        step=1,
    )
    initial_step: int | None = option(
        None,
        "Count steps from this number, all epochs before included. Goes before the starting epoch.",
        label="Start at step",
        minimum=0,
        off=0,
        step=1,
    )
    skip_until_initial_step: bool = option(
        False,
        "Also skip the pictures of the steps before the start, so that the order goes on as if nothing had been "
        "interrupted.",
        label="Skip pictures before the start",
    )
