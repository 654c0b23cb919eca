"""fer curves: what a run would change over time, plotted without training, data or weights."""

from pathlib import Path

import pandas as pd

from fer import config, plots
from fer.layer_table import build
from fer.run import output_folders, tell_if_replaced
from fer.text import counted
from fer.training.curves import build_curves

POINTS = 20  # an epoch


def run(cfg: config.CurvesConfig, given_keys: list[str]) -> None:
    epochs = cfg.train.epochs
    times = [point / POINTS for point in range(epochs * POINTS + 1)]
    columns = {}
    waiting = []
    augment, model = config.build("augment", cfg.augment), build(cfg.model)
    for name, (curve, full) in build_curves(cfg, augment, model).items():
        if curve.needs_history:
            waiting.append(name)
        else:
            columns[name] = [full * curve(time, epochs) for time in times]
    if columns:
        tell_if_replaced(Path(cfg.out))
        with output_folders(Path(cfg.out).parent):
            plots.schedules(pd.DataFrame({"epoch": times} | columns), list(columns), Path(cfg.out))
        print(f"{', '.join(columns)} over {counted(epochs, 'epoch')}: {cfg.out}")
    if waiting:
        print(
            "not shown (depends on validation accuracy): "
            f"{', '.join(sorted(waiting))}; see history.csv of a run"
        )
