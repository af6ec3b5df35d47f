"""One file a contender: `LIBRARY` (what to install), `VARIANTS` (settings and what they mean) and `fit`.

`fit(work, variant)` trains `work.model` in place, in the way that the engine's own documentation shows, with
`work.optimizer()` on `work.loader()` (or the engine's own loader of `work.task.dataset()`).
"""

CONTENDERS = (
    "good_loop",
    "usual_loop",
    "flambeau",
    "ignite",
    "fabric",
    "poutyne",
    "skorch",
    "accelerate",
    "huggingface",
    "fastai",
    "lightning",
)
