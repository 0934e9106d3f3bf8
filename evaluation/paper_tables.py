"""The tables of the paper (arXiv 2605.10470, v1) with ours beside: what was measured on what is said in every row.

The paper measures on DIV2K-val with large backbones; rows of different data stand together and do not compare.
"""

from collections.abc import Mapping, Sequence

from evaluation.report import Table, show
from evaluation.runner import MethodResult
from evaluation.scoring import COLUMNS

PAPER = "DIV2K-val, the paper"
SIX = ("lpips", "liqe", "wadiqam", "musiq", "clipiqa", "hyperiqa")
TABLE_1 = {
    "BSRGAN": (0.3192, 4.0155, -0.1794, 66.98, 0.5924, 0.6132),
    "Real-ESRGAN": (0.3203, 4.1617, -0.1634, 68.47, 0.6529, 0.5991),
    "SeeSR": (0.2751, 4.6037, 0.0609, 72.24, 0.7361, 0.7073),
    "DiffBIR": (0.3483, 4.5559, -0.0098, 72.44, 0.7368, 0.6697),
    "PiSA-SR": (0.2479, 4.5994, 0.0397, 73.23, 0.7336, 0.7001),
    "InvSR": (0.3339, 4.0425, 0.0208, 71.86, 0.7356, 0.6629),
    "DiT4SR": (0.3132, 4.5917, 0.0152, 73.05, 0.7176, 0.6953),
    "M3ESR, Ours-F": (0.2652, 4.5682, 0.0810, 72.02, 0.7396, 0.7064),
    "M3ESR, Ours-Q": (0.2729, 4.6899, 0.0895, 73.29, 0.7610, 0.7153),
}
THREE = ("lpips", "liqe", "musiq")
TABLE_3A = {
    "none": (0.3132, 4.5917, 73.05),
    "without segmentation": (0.2796, 4.6118, 72.54),
    "without depth": (0.2931, 4.6336, 73.08),
    "without edge": (0.2793, 4.6809, 73.18),
    "without dino": (0.2797, 4.7251, 73.07),
    "all": (0.2729, 4.6899, 73.29),
}
TABLE_3B = {
    "temperature off": (0.2906, 4.5942, 72.33),
    "routing off": (0.2780, 4.6347, 72.77),
    "both on": (0.2729, 4.6899, 73.29),
}
OURS_TOO = ("psnr_y", "lpips_squeeze", "niqe")  # measured without pyiqa
NO_SIX = "The paper's metrics were not measured in this run (--paper-metrics); LPIPS-squeeze is not its LPIPS."
NOT_TRAINED = "not trained"


def table_1(results: Sequence[MethodResult], data: str) -> Table:
    """Table 1 with our rows below."""
    header = ("method", "measured on", *(COLUMNS[name].title for name in (*SIX, *OURS_TOO)))
    blank = ("",) * len(OURS_TOO)
    rows = [(name, PAPER, *show_row(SIX, values), *blank) for name, values in TABLE_1.items()]
    for result in results:
        rows.append((result.method.name, data, *(show(result.mean, name) for name in (*SIX, *OURS_TOO))))
    has_six = any(name in result.mean for result in results for name in SIX)
    return Table("Table 1: comparison", header, tuple(rows), () if has_six else (NO_SIX,))


def table_3(
    masked: Mapping[str, MethodResult], trained_without: Mapping[str, MethodResult | None], data: str
) -> tuple[Table, Table]:
    """Table 3 (a) and (b), the paper's row above ours.

    masked: by the paper's row name, the parts switched off at inference. trained_without: by the same names, of
    networks that were trained without the part, as the paper's were; None where there is no such checkpoint.
    """
    tables = []
    for title, paper in (("(a) contribution of each modality", TABLE_3A), ("(b) MoE fusion design", TABLE_3B)):
        rows = []
        for name, values in paper.items():
            rows.append((name, how(name, "trained without"), PAPER, *show_row(THREE, values), *("",) * len(OURS_TOO)))
            result = masked["all" if name == "both on" else name]
            rows.append(
                (name, how(name, "masked at inference"), data, *(show(result.mean, key) for key in (*THREE, *OURS_TOO)))
            )
            if name in trained_without:
                rows.append((name, "trained without", data, *show_trained(trained_without[name])))
        header = ("row", "how", "measured on", *(COLUMNS[name].title for name in (*THREE, *OURS_TOO)))
        notes = ["Masked at inference: the network was trained with every part, and the part is switched off."]
        if not any(key in result.mean for result in masked.values() for key in THREE):
            notes.append(NO_SIX)
        tables.append(Table(f"Table 3 {title}", header, tuple(rows), tuple(notes)))
    return tables[0], tables[1]


def how(name: str, otherwise: str) -> str:
    return "as it is" if name in ("all", "both on") else otherwise


def show_trained(result: MethodResult | None) -> tuple[str, ...]:
    if result is None:
        return (NOT_TRAINED, *("",) * (len(THREE) + len(OURS_TOO) - 1))
    return tuple(show(result.mean, key) for key in (*THREE, *OURS_TOO))


def show_row(names: Sequence[str], values: Sequence[float]) -> tuple[str, ...]:
    return tuple(show(dict(zip(names, values, strict=True)), name) for name in names)
