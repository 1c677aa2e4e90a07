"""Numbers on Omniglot, nats, beside which a table is shown: published ones, and a baseline without a network.

The paper's are Table 1 of arXiv 1709.07116 as quoted by the published code
(github.com/artemZholus/variational_memory_addressing), whose own results are the others; both are ELBO@1000.  Those of
Reed et al. 2018, arXiv 1710.10304, Table 1, are 0.071, 0.068, 0.066 and 0.064 nats for each of 676 pixels.  The context
table is `models/context_table.py`, its numbers are in `results/context_table` and `results/context_table_45-5`.
"""

from config import Config

Column = dict[tuple[int, int], float]  # (C, M) -> nats


def _grid(of: dict[int, tuple[float, ...]]) -> Column:
    """From a row of numbers for each C."""
    return {(c, m): nats for c, row in of.items() for m, nats in zip((1, 2, 3, 4, 5, 10, 19), row, strict=True)}


_PAPER = _grid({
    1: (86.5, 83.0, 79.6, 79.0, 76.5, 76.2, 73.9),
    2: (87.5, 83.3, 80.9, 79.3, 79.1, 77.0, 75.0),
})  # fmt: skip
_PUBLISHED_CODE = _grid({
    1: (85.2, 79.8, 77.5, 76.2, 75.3, 73.2, 71.8),
    2: (85.2, 82.7, 80.1, 78.5, 77.5, 75.2, 73.5),
})  # fmt: skip
_REED: Column = {(1, 1): 48.0, (1, 2): 46.0, (1, 4): 44.6, (1, 8): 43.3}  # times 676
_CONTEXT_TABLE = {  # split -> exact NLL
    "official": _grid({1: (69.5, 67.5, 66.7, 66.0, 65.7, 64.5, 63.8), 2: (69.6, 68.4, 67.6, 67.0, 66.5, 65.5, 64.7)}),
    "45-5": _grid({1: (58.5, 57.0, 55.9, 55.5, 55.3, 54.3, 53.7), 2: (58.5, 57.9, 57.0, 56.5, 56.0, 55.3, 54.4)}),
}
CAVEATS = {
    "published code": "Published code: ELBO@1000 by the same protocol, with every evaluation image as a target.",
    "paper": "Paper: ELBO@1000; its split and filter are not settled, so that column is for orientation.",
    "Reed et al.": "Reed et al.: NLL of an attention PixelCNN, arXiv 1710.10304; 45/5, 26 x 26, filter not known.",
    "context table": "Context table: no network, a table of the pixels around each pixel; exact NLL.",
}


def published(config: Config) -> dict[str, Column]:
    """The published numbers of the same images and the same bound, or beside what it bounds, by their column's name."""
    data, spec = config.test_data, config.test_spec
    of = (data.kind, data.resize, config.model.likelihood != "normal", spec.subset, spec.own_class)
    if of != ("omniglot", 26, True, "test", True) or spec.samples not in (None, 1000):
        return {}
    autoregressive = {"Reed et al.": _REED} if config.model.likelihood == "causal" else {}
    settings = {
        ("official", "nearest-exact"): {"published code": _PUBLISHED_CODE, "paper": _PAPER},
        ("45-5", "maxpool"): {"paper": _PAPER, **autoregressive},
    }
    columns = settings.get((data.split, data.resample), {})
    return columns | ({"context table": _CONTEXT_TABLE[data.split]} if columns else {})
