"""What each optimizer can do, as one table: the book shows it, and the tests check every cell of it.

A cell says `"yes"`, or `"no: "` and words of the error that is raised.
"""

from __future__ import annotations

from dataclasses import dataclass

#: The columns, by the names under which `fop_torch` exports the optimizers.
OPTIMIZERS = ("FOP", "SHD", "PPHD")


@dataclass(frozen=True)
class Capability:
    """A row of the table.

    Attributes:
        topic: Under which heading it stands.
        name: What is asked for, as people look for it.
        sentence: What a user should know about it.
        cells: For each optimizer `"yes"`, or `"no: "` and words of the error.
    """

    topic: str
    name: str
    sentence: str
    cells: dict[str, str]


def _all(cell: str) -> dict[str, str]:
    return dict.fromkeys(OPTIMIZERS, cell)


def _fop_alone(reason: str) -> dict[str, str]:
    return {"FOP": "yes", "SHD": f"no: {reason}", "PPHD": f"no: {reason}"}


CAPABILITIES: tuple[Capability, ...] = (
    # ------------------------------------------------------------------------------------------------- precision
    Capability("precision", "float64", "M is float64 too.", _all("yes")),
    Capability("precision", "float32", "M is float32 too.", _all("yes")),
    Capability(
        "precision",
        "bfloat16",
        "M and all that the hyper-optimizer keeps stay float32; the preconditioned gradient is rounded once.",
        _all("yes"),
    ),
    Capability(
        "precision",
        "float16",
        "As for bfloat16; a preconditioned gradient that leaves float16's range is clamped to it.",
        _all("yes"),
    ),
    Capability(
        "precision",
        "complex",
        "Complex parameters are refused when the optimizer is built.",
        _all("no: expected real floating-point parameters"),
    ),
    Capability(
        "precision",
        "autocast",
        "The step is computed in full precision, inside an autocast region too.",
        _all("yes"),
    ),
    Capability(
        "precision",
        "GradScaler",
        "The hypergradient sees unscaled gradients, and a step that the scaler skips leaves no trace.",
        _all("yes"),
    ),
    # ------------------------------------------------------------------------------------------------- gradients
    Capability(
        "gradients",
        "sparse",
        "Sparse gradients are refused by step(); build the embedding with sparse=False.",
        _all("no: sparse gradients are not supported"),
    ),
    Capability("gradients", "closure", "It is called once, with gradients enabled.", _all("yes")),
    Capability(
        "gradients",
        "accumulation",
        "The hypergradient sees the accumulated gradient, as the step does.",
        _all("yes"),
    ),
    Capability("gradients", "clipping", "The hypergradient sees the clipped gradient, as the step does.", _all("yes")),
    Capability("gradients", "p.grad kept", "The step leaves p.grad as autograd made it.", _all("yes")),
    Capability(
        "gradients",
        "p.grad is None",
        "A parameter without a gradient is left alone, and its M with it, until it has one.",
        _all("yes"),
    ),
    Capability(
        "gradients",
        "not finite",
        "A step with a gradient that is not finite changes nothing and is counted.",
        _all("yes"),
    ),
    # ---------------------------------------------------------------------------------------------------- shapes
    Capability(
        "shapes",
        "0-d parameters",
        'One number has no preconditioner under "auto"; S-HD and PP-HD give it a rate.',
        _all("yes"),
    ),
    Capability(
        "shapes",
        "1-d parameters",
        'Vectors have no preconditioner under "auto"; S-HD and PP-HD give them rates.',
        _all("yes"),
    ),
    Capability("shapes", "empty parameters", "A parameter without entries is passed by.", _all("yes")),
    Capability(
        "shapes",
        "convolutions",
        "In one, two and three dimensions, strided, grouped, depthwise, transposed, and 1 x 1.",
        _all("yes"),
    ),
    Capability("shapes", "embeddings and tied weights", "A weight that is used twice has one M.", _all("yes")),
    Capability(
        "shapes",
        "channels_last",
        "Kernels whose channels lie last in memory stay so.",
        _all("yes"),
    ),
    Capability(
        "shapes", "strided memory", "Parameters and gradients may be views that are not contiguous.", _all("yes")
    ),
    # --------------------------------------------------------------------------------------------------- options
    Capability("options", "maximize", "Climbs, and M learns to climb.", _all("yes")),
    Capability(
        "options", "foreach", "Passed on to the base optimizer; True keeps FOP to torch's calls too.", _all("yes")
    ),
    Capability("options", "fused", "Passed on to the base optimizer.", _all("yes")),
    Capability(
        "options",
        "capturable",
        "For CUDA graphs: with it the hyper-optimizer is capturable too, and all that is kept stays in its place.",
        _all("yes"),
    ),
    Capability(
        "options",
        "differentiable",
        "FOP forms its hypergradient itself; to differentiate through a step, write it out with autograd.",
        _all("no: differentiable: True is not supported"),
    ),
    Capability("options", "lr as a tensor", "It is read at each step and never changed.", _all("yes")),
    Capability(
        "options",
        "learning-rate schedules",
        "The user and the scheduler own lr; what is learned is kept apart.",
        _all("yes"),
    ),
    Capability("options", "named parameters", "Names appear in describe() and preconditioners().", _all("yes")),
    Capability(
        "options", "options of a group", "A group may overrule every option of FOP's and of the base's.", _all("yes")
    ),
    Capability("options", "add_param_group", "Also in the middle of training; what was learned stays.", _all("yes")),
    Capability(
        "options",
        "bases of torch.optim",
        "Any of them may be the base or move M (Muon: matrices only), but for the two below.",
        _all("yes"),
    ),
    Capability(
        "options",
        "LBFGS as the base",
        "It evaluates the loss several times a step.",
        _all("no: LBFGS is not supported"),
    ),
    Capability(
        "options", "SparseAdam as the base", "It takes sparse gradients.", _all("no: SparseAdam is not supported")
    ),
    Capability(
        "options",
        "normalize",
        "Eq. (11) scales a matrix; rates have no such norm.",
        _fop_alone("Eq. (11) is for the matrix forms"),
    ),
    Capability(
        "options",
        "safe",
        "Keeps P definite; the baselines' rates may become negative, as the paper has them.",
        _fop_alone("may become negative by design"),
    ),
    Capability("options", "max_norm", "Bounds the norm of P; for the baselines the size of a rate.", _all("yes")),
    Capability(
        "options",
        "exponential",
        "P = exp(M) is definite by itself and learns at a rate without a unit; the baselines have their own form.",
        _fop_alone("multiple values for keyword argument 'preconditioner'"),
    ),
    Capability(
        "options",
        "linear",
        "P = M itself, learned at a rate without a unit; definite within max_norm alone.",
        _fop_alone("multiple values for keyword argument 'preconditioner'"),
    ),
    Capability(
        "options",
        "null_step",
        "With a closure: the better of the base's own step and this one, for three evaluations of the loss.",
        _all("yes"),
    ),
    # ------------------------------------------------------------------------------------------ state and hardware
    Capability("state", "state_dict", "Goes on to the last bit, with torch.load's defaults.", _all("yes")),
    Capability(
        "state", "checkpoint of the base", "A checkpoint of the base optimizer alone loads; M starts anew.", _all("yes")
    ),
    Capability("state", "deepcopy and pickle", "The copy goes on to the last bit.", _all("yes")),
    Capability(
        "state", "hooks", "Hooks before and after a step, and around state_dict, run as torch's do.", _all("yes")
    ),
    Capability(
        "hardware", "torch.compile", "The compiled step is cut once, as SGD's is, and not compiled again.", _all("yes")
    ),
    Capability(
        "hardware",
        "CUDA without waits",
        "From the third step on the host waits for the bounds of exponential and linear P, and for null_step.",
        _all("yes"),
    ),
    Capability("hardware", "DDP", "M is the same on all processes, to the bit, without being sent.", _all("yes")),
    Capability(
        "hardware",
        "FSDP2",
        "Parameters that fully_shard has split are refused when the optimizer is built.",
        _all("no: sharded parameters (DTensor) are not supported"),
    ),
)
