"""ELBO@1000 on Omniglot, nats: the published numbers beside which a table is shown.

The paper's are Table 1 of arXiv 1709.07116 as quoted by the published code
(github.com/artemZholus/variational_memory_addressing), whose own results are the others.
"""

from config import Config

SIZES = (1, 2, 3, 4, 5, 10, 19)  # images in the memory, M
Columns = dict[str, dict[int, tuple[float, ...]]]  # column -> C -> a number for each of SIZES

_PAPER: dict[int, tuple[float, ...]] = {
    1: (86.5, 83.0, 79.6, 79.0, 76.5, 76.2, 73.9),
    2: (87.5, 83.3, 80.9, 79.3, 79.1, 77.0, 75.0),
}
_PUBLISHED_CODE: dict[int, tuple[float, ...]] = {
    1: (85.2, 79.8, 77.5, 76.2, 75.3, 73.2, 71.8),
    2: (85.2, 82.7, 80.1, 78.5, 77.5, 75.2, 73.5),
}
CAVEATS = {
    "published code": "Published code: the same protocol with every evaluation image as a target.",
    "paper": "Paper: its split and filter are not settled, so that column is for orientation.",
}


def published(config: Config) -> Columns:
    """The published numbers of the same images and the same bound, or beside what it bounds, by their column's name."""
    data, spec = config.test_data, config.test_spec
    of = (data.kind, data.resize, config.model.likelihood != "normal", spec.subset, spec.own_class)
    if of != ("omniglot", 26, True, "test", True) or spec.samples not in (None, 1000):
        return {}
    columns = {"published code": _PUBLISHED_CODE, "paper": _PAPER}
    settings = {("official", "nearest-exact"): ("published code", "paper"), ("45-5", "maxpool"): ("paper",)}
    return {name: columns[name] for name in settings.get((data.split, data.resample), ())}
