"""fer curves: what a training would change over time, plotted without training, data or weights."""

from pathlib import Path

import pandas as pd

from fer import config, plots
from fer.layer_table import build
from fer.training.curves import build_curves

POINTS = 20  # an epoch


def run(cfg: config.CurvesConfig, typed: list[str]) -> None:
    curves = build_curves(cfg, config.build("augment", cfg.augment), build(cfg.model))
    shown = {name: (curve, size) for name, (curve, size) in curves.items() if not curve.waits}
    times = [step / POINTS for step in range(cfg.train.epochs * POINTS + 1)]
    table = {
        name: [size * curve(t, cfg.train.epochs) for t in times]
        for name, (curve, size) in shown.items()
    }
    if table:
        plots.schedules(pd.DataFrame({"epoch": times} | table), list(table), Path(cfg.out))
        print(f"{', '.join(table)} over {cfg.train.epochs} epochs: {cfg.out}")
    if waiting := sorted(curves.keys() - table.keys()):
        print(
            f"not shown, since they wait for validation accuracy: {', '.join(waiting)}; see "
            "history.csv of a run"
        )
