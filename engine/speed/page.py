"""The page that shows what was measured: tables in Markdown, and a plot for each way in which cost grows."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from engine.files import replacing, write_text
from engine.speed.segmenting import Row
from engine.tables import markdown_table

PAGE = "README.md"
SIZE_INCHES, DOTS_PER_INCH = (9, 3.2), 90
# rows -> what grows, lines of seconds, lines of memory; each line a key of the rows and its label
PLOTS = {
    "slices": (
        "slices of 512 × 512",
        {"plain_seconds": "plain, a prompt", "encode_seconds": "encoding", "prompt_seconds": "each further prompt"},
        {"peak_mib": "peak above the volume"},
    ),
    "prompts": (
        "prompts to one volume",
        {"plain_seconds": "plain", "seconds": "engine, encoding and prompts"},
        {"peak_mib": "peak above the volume"},
    ),
    "adapters": (
        "adapters over one volume",
        {
            "plain_seconds": "plain, without loading",
            "load_seconds": "loading",
            "encode_seconds": "encoding",
            "prompt_seconds": "a prompt each",
        },
        {"held_mib": "held by all"},
    ),
    "slices_at_a_time": (
        "slices at a time",
        {"plain_slice_seconds": "plain, a slice", "engine_slice_seconds": "engine, a slice"},
        {"peak_mib": "peak"},
    ),
    "volumes": (
        "volumes held",
        {"plain_seconds": "plain", "return_seconds": "a prompt to the first one again"},
        {"voxels_mib": "voxels", "encodings_mib": "encodings"},
    ),
}
WIDE = 5  # a spread of values from which an axis is logarithmic
GPUS = {"NVIDIA H100 SXM": 989, "NVIDIA RTX 3090": 71}  # 10¹² operations a second in bf16, by their data sheets
FLOOR_SLICES = 300


def write_page(folder: Path, figures: dict) -> None:
    """Write the page with its plots into a folder that exists.

    Args:
        figures: what `engine.benchmark` gathers.
    """
    for name, (grows, seconds, memory) in PLOTS.items():
        _draw(folder / f"{name}.png", figures["growth"][name], name, grows, seconds, memory)
    write_text(
        folder / PAGE, "\n".join([*_head(figures), *_comparisons(figures), *_growth(figures), *_rest(figures)])
    )


def _head(figures: dict) -> list[str]:
    machine = figures["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers"))
    return [
        "# Speed",
        "",
        f"Written by `python -m engine.benchmark {figures['arguments']}` on {machine['device']}, "
        f"threads: {machine['threads']}, {machine['memory_gib']} GiB of memory; {versions}. "
        f"The machine's load was {machine['load']} at the start and {figures['load_at_the_end']} at the end: above "
        f"{machine['threads']}, others took part of it, and single points of plots scatter.",
        "Seconds are on the clock. What is compared took turns in one run; a figure is the median of its "
        f"{figures['repeats']} turns, and a point of a plot is a single one. "
        '"Plain" is Hugging Face\'s own forward in fp32, slice by slice and prompt by prompt. The volumes are '
        "random blocks, in which a model finds little: few voxels decide the Dice. "
        "A peak of memory counts what is taken beside that which earlier work left with the process; 0 is no more.",
        "",
    ]


def _comparisons(figures: dict) -> list[str]:
    columns = (
        *(
            "base",
            "slices",
            "precision",
            "plain, each prompt",
            "engine, first prompt",
            "engine, each further prompt",
        ),
        *("cache a slice", "largest difference of a probability", "Dice of both masks"),
    )
    rows = [
        (
            *(row["base"], row["slices"], row["precision"], f"{row['plain_seconds']:.1f} s"),
            f"{row['first_seconds']:.2f} s ({row['first_speedup']:.1f} × faster)",
            f"{row['further_seconds']:.3f} s ({row['further_speedup']:.0f} × faster)",
            f"{row['cache_kb_per_slice']:.0f} kB",
            *(f"{row['largest_difference']:.4f}", f"{row['dice']:.4f}"),
        )
        for row in figures["comparisons"]
    ]
    return ["## First and further prompts", "", markdown_table(columns, rows), ""]


def _growth(figures: dict) -> list[str]:
    lines = [f"## How cost grows (`{figures['growth_base']}`)", ""]
    for name, (_, seconds, memory) in PLOTS.items():
        grows = name.replace("_", " ")
        columns = (grows, *(f"{label} (s)" for label in seconds.values()), *(f"{m} (MiB)" for m in memory.values()))
        rows = [
            (row[name], *(f"{row[key]:.3g}" for key in seconds), *(f"{row[key]:.0f}" for key in memory))
            for row in figures["growth"][name]
        ]
        lines += [f"![Seconds and memory against {grows}]({name}.png)", "", markdown_table(columns, rows), ""]
    return lines


def _rest(figures: dict) -> list[str]:
    lines = ["## Where the time goes", "", "PyTorch's operations, by its profiler.", ""]
    for name, rows in figures["profile"].items():
        shares = [(f"`{row['operation']}`", f"{row['share']:.0%}") for row in rows]
        lines += [markdown_table((f"in {name}", "share"), shares), ""]
    if "compiled" in figures:
        lines += ["## What compiling would change", "", *_compiled(figures["compiled"]), ""]
    lines += [
        "## The floor",
        "",
        "Encoding cannot take less than the operations of the vision layers at the rate at which this device "
        "multiplies large square matrices in the same precision, measured in the same run. Beside it is the time "
        f"of {FLOOR_SLICES} slices on GPUs at the rates of their data sheets.",
        "",
        _floor(figures["comparisons"]),
        "",
        "## Training",
        "",
        "Steps on one batch in memory: the engine's, in its automatic precision, and the same step through all "
        "of Hugging Face's encoders in fp32. `shallow` keeps its encoder's activations from the first step on. "
        "Memory is what a step keeps for its backward pass, beside the weights.",
        "",
        _training(figures["training"]),
        "",
        "What a step of `dense` with many samples keeps for its backward pass, and the peak of all that it takes "
        "beside the weights. Recomputed activations are `--recompute-activations`.",
        "",
        _training_memory(figures["training_memory"]),
        "",
    ]
    return lines


def _compiled(rows: Sequence[Row]) -> list[str]:
    words = (
        "The engine compiles nothing, so there is nothing to warm up. This is `torch.compile` with its defaults, "
        "encoding one batch."
    )
    columns = ("base", "slices", "engine", "compiled", "warming up", "relative difference of the maps")
    table = [
        (
            *(row["base"], row["batch_size"]),
            *(f"{row[f'{way}_seconds'] * 1000:.1f} ms" for way in ("engine", "compiled")),
            *(f"{row['warm_up_seconds']:.1f} s", f"{row['relative_difference']:.4f}"),
        )
        for row in rows
        if "warm_up_seconds" in row
    ]
    return [words, "", markdown_table(columns, table)] if table else ["`torch.compile` cannot work here."]


def _floor(rows: Sequence[Row]) -> str:
    columns = (
        *("base", "10⁹ operations a slice", "this device, 10⁹/s", "slices", "floor", "encoding takes"),
        *(f"{name} at {rate} · 10¹²/s" for name, rate in GPUS.items()),
    )
    return markdown_table(columns, [_floor_row(row) for row in rows])


def _floor_row(row: Row) -> tuple:
    gflop, floor_seconds = row["encoder_gflop"], row["slices"] * row["encoder_gflop"] / row["product_gflops"]
    return (
        *(row["base"], f"{gflop:.1f}", f"{row['product_gflops']:,.0f}", row["slices"], f"{floor_seconds:.3g} s"),
        f"{row['encode_seconds']:.3g} s ({row['encode_seconds'] / floor_seconds:.1f} × the floor)",
        *(f"{gflop * FLOOR_SLICES / rate:.1f} ms" for rate in GPUS.values()),
    )


def _training_memory(rows: Sequence[Row]) -> str:
    ways = {"plain": "plain", "engine": "engine", "recomputing": "engine, recomputing activations"}
    return markdown_table(
        ("base", "batch", *(f"{label}, keeps and peak" for label in ways.values())),
        [
            (
                *(row["base"], row["batch_size"]),
                *(f"{row[f'{way}_kept_mib']:,.0f}, {row[f'{way}_peak_mib']:,.0f} MiB" for way in ways),
            )
            for row in rows
        ],
    )


def _training(rows: Sequence[Row]) -> str:
    columns = (
        "base",
        "method",
        "batch",
        "plain",
        "engine",
        "speed",
        "first step",
        "plain keeps",
        "engine keeps",
        "peaks",
    )
    return markdown_table(
        columns,
        [
            (
                *(
                    row["base"],
                    row["method"],
                    row["batch_size"],
                    f"{row['plain_samples_per_second']:.2f} samples/s",
                ),
                *(f"{row['engine_samples_per_second']:.2f} samples/s", f"{row['speedup']:.1f} × faster"),
                f"{row['engine_first_step_seconds']:.1f} s",
                *(f"{row['plain_kept_mib']:.0f} MiB", f"{row['engine_kept_mib']:.0f} MiB"),
                "{plain_peak_mib:.0f}, {engine_peak_mib:.0f} MiB".format(**row) if "plain_peak_mib" in row else "",
            )
            for row in rows
        ],
    )


def _draw(path: Path, rows: Sequence[Row], name: str, grows: str, *panels: dict[str, str]) -> None:
    figure = Figure(figsize=SIZE_INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, lines, unit in zip(figure.subplots(1, 2), panels, ("seconds", "MiB"), strict=True):
        for key, label in lines.items():
            axes.plot([row[name] for row in rows], [row[key] for row in rows], "o-", label=label, markersize=4)
        axes.set(xlabel=grows, ylabel=unit)
        if unit == "seconds":
            values = [row[key] for row in rows for key in lines]
            axes.set_xscale("log")
            if max(values) > WIDE * min(values):
                axes.set_yscale("log")
            else:
                axes.set_ylim(bottom=0, top=1.1 * max(values))
            axes.set_xticks([row[name] for row in rows], [f"{row[name]:,}" for row in rows])
            axes.xaxis.minorticks_off()
        else:
            axes.set_ylim(bottom=0, top=1.1 * max(row[key] for row in rows for key in lines) or 1)
            axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncol=2)
        axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        canvas.print_png(str(temporary), metadata={"Software": "VLSMSegmenter"}, pil_kwargs={"optimize": True})
