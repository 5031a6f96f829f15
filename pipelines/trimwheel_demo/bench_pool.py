"""The demo's trained model as a pool for the statistical benches (`--pool demo`).

Found through the entry-point group `trimwheel.pools`, because pipelines do not know the demo. Runs
every held-out snippet to full depth once; trains the model first when it is not cached. Costs are
layers.
"""

from __future__ import annotations

import numpy as np

from trimwheel_demo import corpus
from trimwheel_demo.training import ensure
from trimwheel_pipelines.bench_pools import Pool
from trimwheel_pipelines.replay import ReplayRecords


def demo_pool(seed: int) -> Pool:
    """Records of all held-out snippets under the dense signature; every snippet is a session."""
    from trimwheel_workers.model import artifact
    from trimwheel_workers.offline import evaluate

    trained = ensure(seed)
    model = artifact.load(trained.folder, trained.digest)
    texts = [snippet.text for snippet in corpus.build(seed).pools["heldout"]]
    result = evaluate(model, texts, model.config.dense_signature)
    records = ReplayRecords.from_predictions(
        result.scores, result.predictions, result.predictions[:, -1]
    )
    costs = tuple(float(layer) for layer in (*model.config.exits, model.config.layers))
    return Pool(f"demo model, seed {seed}", records, costs, np.arange(len(texts)))
